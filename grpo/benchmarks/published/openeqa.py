"""OpenEQA: LLM-Match by a judge, for all 1,636 questions or the 184 that the authors chose for people and costly
models.

The authors' GPT-4V baseline shows 50 frames of at most 512 pixels between the second and the third line of its prompt;
here they come before all of it. Their judge is gpt-4-1106-preview: numbers of different judges don't compare. Of the
extra answers the one that is empty is not shown to ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from grpo.benchmarks.benchmark import Benchmark, Judging, ScoredAnswer
from grpo.benchmarks.replies import percent, written
from grpo.benchmarks.rules import answer_text
from grpo.data.errors import DataError, NoSuchFile
from grpo.data.files import parse
from grpo.data.readers.openeqa import read_openeqa
from grpo.groups import Sample

SOURCES = ("https://open-eqa.github.io", "https://github.com/facebookresearch/open-eqa")
PROMPT = (
    "You are an intelligent question answering agent. I will ask you questions about an indoor space and you must "
    "provide an answer.\nYou will be shown a set of images that have been collected from a single location.\nGiven a "
    "user query, you must output `text` to answer to the question asked by the user.\nUser Query: {question}"
)
"""`prompts/gpt4v.txt`."""
SUBSET = "open-eqa-v0-184-questions.json"


def prediction(_: Sample, text: str) -> str | None:
    """What the judge sees: the answer up to its last full stop, as `evaluate-predictions.py` cuts it, also where the
    stop is that of a number; None for an empty one."""
    end = text.rfind(".")
    return (text[: end + 1] if end >= 0 else text).strip() or None


def official(_: Sample, text: str, judged: float | None) -> float | None:
    """(mark - 1) / 4; an empty answer has the mark 0, which is clipped to 1. Without a mark the official code stops."""
    return 0.0 if not text.strip() else judged


def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """LLM-Match, C = 100 * mean of (mark - 1) / 4 over the questions that were judged."""
    return {"llm_match": percent(each.official for each in scored if each.official is not None)}


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The results file of `evaluate-predictions.py`, which wants all ids; None for an answer that can't be read."""
    rows = [{"question_id": each.sample.columns["question_id"], "answer": _said(each)} for each in scored]
    return {"open-eqa-v0-results.json": written(rows)}


def _said(scored: ScoredAnswer) -> str | None:
    text = None if scored.answer.finish == "failed" else answer_text(scored.answer.text, has_tags=False)
    return text.strip() or None if text else None


def _chosen(file: Path) -> frozenset[str]:
    """The ids of the subset, from its file beside the questions or in the repository's folder `assets`."""
    places = [file.with_name(SUBSET), file.parent.parent / "assets" / SUBSET]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise NoSuchFile(str(places[0]), "no such file; it is in the folder assets of OpenEQA's repository")
    ids = parse(found.read_bytes())
    if type(ids) is not list or not all(isinstance(each, str) for each in ids):
        raise DataError(str(found), "expected a list of question ids")
    return frozenset(ids)


OPENEQA = Benchmark(
    name="openeqa",
    reader="openeqa",
    notes="Published, with the authors' judge: people 86.8, GPT-4V 55.3, blind GPT-4 33.5, AlanaVLM 46.7.",
    sources=SOURCES,
    prompt=lambda sample: PROMPT.format(question=sample.question),
    judge=Judging(prompt="openeqa_mmbench", prediction=prediction, official=official),
    groups=("category",),
    summary=summary,
    submission=submission,
)
OPENEQA_184 = replace(
    OPENEQA,
    name="openeqa_184",
    reader=replace(
        read_openeqa,
        translate=lambda record, place: (
            sample
            for sample in read_openeqa.translate(record, place)
            if sample.columns["question_id"] in place.beside
        ),
        beside=_chosen,
    ),
)
