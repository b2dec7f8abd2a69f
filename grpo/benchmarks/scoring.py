"""Scores of stored answers: our strict verdict beside the official rule, without a model. Judged answers are cached."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from grpo.benchmarks.answers import Key
from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, StoredAnswer, Verdict
from grpo.benchmarks.rules import answer_text, verdict_of
from grpo.groups import Rollout, Sample
from rewards.builtin.judge import Judge
from rewards.builtin.judge.client import JudgeError
from rewards.builtin.judge.settings import JudgeSettings

Tell = Callable[[str], object]

JUDGED_AT_ONCE = 1000
"""Answers handed to the judge together; its own settings say how many requests are under way."""


def score_answers(
    benchmark: Benchmark,
    asked: Iterable[tuple[Sample, str]],
    answers: Mapping[Key, StoredAnswer],
    *,
    num_samples: int = 1,
    has_tags: bool = False,
    judge: Mapping[str, Any] | None = None,
    is_shown: bool = False,
    tell: Tell = lambda _: None,
) -> list[ScoredAnswer]:
    """The scores of all that was asked, in order; ValueError if something was not answered yet.

    has_tags: whether the prompt asked for an answer block. judge: the reward `judge`'s arguments beside the prompt.
    """
    wanted = [
        (sample, (sample.id, variant, index)) for sample, variant in asked for index in range(num_samples)
    ]
    if missing := [key for _, key in wanted if key not in answers]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} answers are not there yet (the first is to {missing[0][0]}): "
            "the same command without --score-only gives them"
        )
    pairs = [(sample, answers[key]) for sample, key in wanted]
    scored = [by_rules(benchmark, sample, answer, has_tags=has_tags) for sample, answer in pairs]
    return with_marks(benchmark, scored, judge or {}, has_tags=has_tags, is_shown=is_shown, tell=tell)


def by_rules(benchmark: Benchmark, sample: Sample, answer: StoredAnswer, *, has_tags: bool) -> ScoredAnswer:
    """An answer's scores without a judge; of a judged benchmark, only whether there is something to judge."""
    if benchmark.judge is not None:
        return ScoredAnswer(
            sample=sample, answer=answer, verdict=_unjudged(benchmark, sample, answer, has_tags)
        )
    verdict = verdict_of(benchmark, sample, answer, has_tags=has_tags)
    if verdict is None:
        return ScoredAnswer(sample=sample, answer=answer, verdict=None)
    official = verdict.score
    if benchmark.official is not None:
        text = _official_text(answer, has_tags)
        official = 0.0 if text is None else benchmark.official(sample, text)
    return ScoredAnswer(sample=sample, answer=answer, verdict=verdict, official=official)


def check_judge(benchmark: Benchmark, judge: Mapping[str, Any], key: str) -> None:
    """Raise ValueError that names the key unless a judge's settings are whole, or absent where none is wanted."""
    if benchmark.judge is None:
        if judge:
            raise ValueError(f"{key}: {benchmark.name} wants no judge")
        return
    known = JudgeSettings.__dataclass_fields__
    if unknown := [name for name in judge if name not in known]:
        raise ValueError(f"no setting {key}.{unknown[0]}; there are {', '.join(known)}")
    if not {"base_url", "model"} <= judge.keys():
        raise ValueError(
            f"{key}: {benchmark.name} is marked by a judge: set {key}.base_url and {key}.model (docs/judge.md)"
        )
    try:
        Judge(**{"prompt": benchmark.judge.prompt, **judge, "cache": None})
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def with_marks(
    benchmark: Benchmark,
    scored: Sequence[ScoredAnswer],
    judge: Mapping[str, Any],
    *,
    has_tags: bool,
    limit_s: float | None = None,
    is_shown: bool = False,
    tell: Tell = lambda _: None,
) -> list[ScoredAnswer]:
    """The answers with a judge's marks, of a benchmark that wants a judge; those without a mark stay unjudged.

    judge: the reward `judge`'s arguments beside the prompt. limit_s: when the judge is waited for no longer. tell: is
    told how many have no mark, and why the first of them. With a limit, which training has, a judge that can't be
    set up leaves all unjudged; without one it raises ValueError or OSError.
    """
    if benchmark.judge is None:
        return [*scored]
    try:
        asked = Judge(**{"prompt": benchmark.judge.prompt, **judge})
    # The settings were right at the start: what is wrong now, such as the cache's disk, is no reason to lose a run.
    except (ValueError, OSError) as error:
        if limit_s is None:
            raise
        tell(f"note: no answer has a mark: {error}")
        return [*scored]
    marked = _judged(benchmark, scored, asked, has_tags=has_tags, limit_s=limit_s, is_shown=is_shown)
    done, reasons = asyncio.run(marked)
    if reasons:
        tell(f"note: {len(reasons)} of {len(scored)} answers have no mark: {reasons[0]}")
    return done


def rollout_of(scored: ScoredAnswer) -> Rollout:
    """An answer as the rewards take a completion; without its frames, which are not stored."""
    return Rollout(
        sample=scored.sample,
        clip=None,
        tags=(),
        text=scored.answer.text,
        token_ids=(),
        logprobs=(),
        stopped=scored.answer.finish == "stop",
    )


def _official_text(answer: StoredAnswer, has_tags: bool) -> str | None:
    """What the official rule is given: the answer block, or all where none was asked for.

    None for what is wrong before the rule, which would draw lots or find a letter in the reasoning: a question that
    could not be asked, and a completion that was asked for the one block and has it not.
    """
    return None if answer.finish == "failed" else answer_text(answer.text, has_tags=has_tags)


def _unjudged(benchmark: Benchmark, sample: Sample, answer: StoredAnswer, has_tags: bool) -> Verdict | None:
    """The verdict before the judge was asked: `unjudged` for what is to be judged."""
    if not sample.answer:
        return None
    if answer.finish == "failed":
        return Verdict(score=0.0, outcome="failed")
    assert benchmark.judge is not None
    text = answer_text(answer.text, has_tags=has_tags)
    prediction = None if text is None else benchmark.judge.prediction(sample, text)
    if prediction is None:
        return Verdict.unread(answer.finish)
    return Verdict(score=0.0, outcome="unjudged", answer=prediction)


async def _judged(
    benchmark: Benchmark,
    scored: Sequence[ScoredAnswer],
    judge: Judge,
    *,
    has_tags: bool,
    limit_s: float | None,
    is_shown: bool,
) -> tuple[list[ScoredAnswer], list[str]]:
    """The answers with their marks, and why each that should have one has none."""
    marks: list[float | str | None] = []
    ends_s = None if limit_s is None else time.monotonic() + limit_s
    try:
        with tqdm(desc="judging", total=len(scored), unit="answer", leave=False, disable=not is_shown) as bar:
            for start in range(0, len(scored), JUDGED_AT_ONCE):
                some = scored[start : start + JUDGED_AT_ONCE]
                marks += await asyncio.gather(*(_mark(judge, each, ends_s) for each in some))
                bar.update(len(some))
    finally:
        await judge.close()
    known = [mark if isinstance(mark, float) else None for mark in marks]
    done = [_with_mark(benchmark, *pair, has_tags) for pair in zip(scored, known, strict=True)]
    return done, [mark for mark in marks if isinstance(mark, str)]


async def _mark(judge: Judge, scored: ScoredAnswer, ends_s: float | None) -> float | str | None:
    """The judge's score; None for what is not to be judged, and a reason where the judge gave none."""
    if scored.verdict is None or scored.verdict.outcome != "unjudged":
        return None
    try:
        async with asyncio.timeout(None if ends_s is None else max(0.0, ends_s - time.monotonic())):
            return await judge.mark(rollout_of(scored), scored.verdict.answer)
    except TimeoutError:
        return "the judge was waited for no longer"
    # A cache file that can't be written is no reason to lose a run.
    except (JudgeError, sqlite3.Error) as error:
        return str(error)


def _with_mark(
    benchmark: Benchmark, scored: ScoredAnswer, mark: float | None, has_tags: bool
) -> ScoredAnswer:
    judging, verdict = benchmark.judge, scored.verdict
    assert judging is not None
    if verdict is None:
        return scored
    if mark is not None:
        verdict = Verdict.graded(judging.score(mark), verdict.answer)
    official = None if mark is None else verdict.score
    if judging.official is not None:
        text = _official_text(scored.answer, has_tags)
        official = 0.0 if text is None else judging.official(scored.sample, text, mark)
    return replace(scored, verdict=verdict, official=official)
