"""For tests of benchmarks: their questions from a made-up file, and scores of answers that a test writes down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from grpo.benchmarks import find_benchmark
from grpo.benchmarks.benchmark import Judging, ScoredAnswer, StoredAnswer, Verdict
from grpo.benchmarks.scoring import by_rules
from grpo.data import FORMATS
from grpo.groups import Sample

FAILED = object()
"""In the place of an answer: the question could not be asked."""


def questions(name: str, path: Path, media_root: str | None = "/media") -> list[Sample]:
    """What a benchmark asks of a file."""
    benchmark = find_benchmark(name)
    reader = FORMATS[benchmark.reader] if isinstance(benchmark.reader, str) else benchmark.reader
    return benchmark.prepare(reader(path, media_root))


def prompt(name: str, sample: Sample) -> str:
    """The official prompt of a question."""
    official = find_benchmark(name).prompt
    assert official is not None
    return official(sample)


def scored(
    name: str,
    samples: Sequence[Sample],
    answers: Sequence[object],
    marks: Mapping[str, float] | None = None,
) -> list[ScoredAnswer]:
    """The scores of one answer to each question. marks: what the judge gives to what it is shown, from 0 to 1."""
    return [_scored(name, *pair, marks or {}) for pair in zip(samples, answers, strict=True)]


def _scored(name: str, sample: Sample, said: object, marks: Mapping[str, float]) -> ScoredAnswer:
    benchmark = find_benchmark(name)
    text = said if isinstance(said, str) else ""
    answer = StoredAnswer(
        sample_id=sample.id, index=0, text=text, finish="failed" if said is FAILED else "stop"
    )
    if benchmark.judge is not None:
        return _judged(benchmark.judge, sample, answer, marks)
    return by_rules(benchmark, sample, answer, has_tags=False)


def _judged(
    judging: Judging, sample: Sample, answer: StoredAnswer, marks: Mapping[str, float]
) -> ScoredAnswer:
    shown = judging.prediction(sample, answer.text)
    mark = None if shown is None else marks.get(shown)
    if shown is None:
        verdict = Verdict.unread()
    elif mark is None:
        verdict = Verdict(score=0.0, outcome="unjudged")
    else:
        verdict = Verdict.graded(judging.score(mark), shown)
    official = judging.official(sample, answer.text, mark) if judging.official else mark
    return ScoredAnswer(sample=sample, answer=answer, verdict=verdict, official=official)


def ours(answers: Sequence[ScoredAnswer]) -> float:
    """Our score: all questions are in the denominator."""
    return fmean(each.verdict.score for each in answers if each.verdict)


def official(answers: Sequence[ScoredAnswer]) -> float:
    """The official score, of the answers that the official rule counts."""
    return fmean(each.official for each in answers if each.official is not None)


def outcomes(answers: Sequence[ScoredAnswer]) -> list[str]:
    return [each.verdict.outcome for each in answers if each.verdict]


def submitted(name: str, answers: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The submission files."""
    submission = find_benchmark(name).submission
    assert submission is not None
    return submission(answers)


def metrics(name: str, answers: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    summary = find_benchmark(name).summary
    assert summary is not None
    return summary(answers)
