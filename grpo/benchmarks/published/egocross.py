"""EgoCross, whose domains are surgery, industry, extreme sports and animals: with options, and with open answers.

The test file without answers, `egocross_testbed_imgs.json`, is asked as well, for the submission: a JSON list of
objects with `id`, `dataset` and the letter in `answer`. This form is that of a participant's code
(https://github.com/Lee-zixu/OmniEgo-R2): the organisers' own template could not be read.

The rates in the prompt and of the frames are those of the official code, 1 per second for the .png frames of
CholecTrack20 and 0.5 for all others; its authors say elsewhere that EgoSurgery has 1 per second too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo.benchmarks.benchmark import Benchmark, Judging, ScoredAnswer, Verdict
from grpo.benchmarks.replies import letter_of, lettered, only_object, written
from grpo.benchmarks.rules import strict
from grpo.data.fields import Record
from grpo.data.readers.egocross import read_egocross, translate_closed, translate_open
from grpo.data.records import Place
from grpo.groups import Sample

SOURCES = (
    "https://arxiv.org/abs/2508.10729",
    "https://github.com/EgoCross-Benchmark/EgoCrossCodes",
    "https://huggingface.co/datasets/myuniverse/EgoCross",
)
DOMAINS = {
    "EgoPet": "Animal",
    "ENIGMA": "Industry",
    "ExtrameSportFPV": "XSports",
    "CholecTrack20": "Surgery",
    "EgoSurgery": "Surgery",
}
GROUPS = ("domain", "primary_category", "question_type")
PASS_MARK = 4 / 5
"""A mark of 4 of 5 counts as a success."""

CLOSED = (
    "Please carefully read the question and its options, then select the most appropriate answer. Question: {question}"
    "\n\nOptions:\n{options}The original FPS of the video is {original_video_fps}. This image set is obtained by "
    "sampling at {sampling_fps} fps.Respond in JSON format with two fields: 'prediction' (the correct option letter: "
    "A, B, C, or D) and 'reason' (a brief explanation of your choice). Do not include any other content.\n\n"
    'Example response:\n{{\n    "prediction": "B",\n    "reason": "Paris is the capital city of France."\n}}\n'
)
"""The prompt of `eval_os_closedset.py`, with nothing between the last option and what follows, as there."""
OPEN = (
    "Please carefully read the question and the provided context, then provide a clear and concise answer based on "
    "your understanding. Question: {question}\nThe original FPS of the video is {original_video_fps}. This image set "
    "is obtained by sampling at {sampling_fps} fps.Your answer should be reasoned and directly address the question. "
    "Respond in JSON format with two fields: 'prediction' (your answer as text) and 'reason' (a brief explanation of "
    'your reasoning). Do not include any other content.\n\nExample response:\n{{\n    "prediction": "The time '
    'duration of the video is 10 seconds.",\n    "reason": "The total number of frames is 240 and the frame rate is '
    '24 FPS, so 240 / 24 = 10 seconds."\n}}\n'
)
"""The prompt of `eval_gpt_openset.py`."""


def _told(sample: Sample, record: Record) -> Sample:
    """The sample with what its prompt and its tables say beyond the record."""
    is_png = os.path.splitext(record["video_path"][0])[1].lower() == ".png"
    fps = 1.0 if record.get("dataset") == "CholecTrack20" and is_png else 0.5
    added = {"domain": DOMAINS.get(str(record.get("dataset")), "other"), "sampling_fps": fps}
    return replace(sample, columns={**sample.columns, **added})


def _closed(record: Record, place: Place) -> Iterator[Sample]:
    """The samples of a record; those of the published test file have no answer."""
    is_answered = record.get("correct_option_letter") is not None
    # A file that went through pandas has the key with null.
    letter = record.get("correct_option_letter")
    for sample in translate_closed(
        {**record, "correct_option_letter": "A" if letter is None else letter}, place
    ):
        told = _told(sample, record)
        yield told if is_answered else replace(told, answer="")


def _open(record: Record, place: Place) -> Iterator[Sample]:
    yield from (_told(sample, record) for sample in translate_open(record, place))


def closed_prompt(sample: Sample) -> str:
    options = "\n".join(lettered(sample, "{letter}: {text}"))
    return CLOSED.format(question=sample.question, options=options, **_rates(sample))


def open_prompt(sample: Sample) -> str:
    return OPEN.format(question=sample.question, **_rates(sample))


def _rates(sample: Sample) -> dict[str, Any]:
    return {key: sample.columns.get(key) for key in ("original_video_fps", "sampling_fps")}


def closed_ours(sample: Sample, text: str) -> Verdict | None:
    """The letter that `prediction` names in the one JSON object of the reply; or the reply itself, if it has none."""
    said = prediction(text)
    return strict(sample, text if said is None else said)


def prediction(text: str) -> str | None:
    """The `prediction` of the one JSON object in a reply; None without one."""
    said = (only_object(text) or {}).get("prediction")
    return said if isinstance(said, str) else None


def official_prediction(text: str) -> Any:
    """`prediction` as the official parser has it: of the whole reply as JSON, else of what stands between the first `{`
    and the next `}`; empty without either. Text with an object in an object, or a `}` in its reason, is cut there."""
    opened = text.find("{")
    for part in (text, text[opened : text.find("}", opened) + 1] if opened >= 0 else ""):
        try:
            return json.loads(part).get("prediction", "")
        except (ValueError, AttributeError, RecursionError):
            continue
    return ""


def closed_official(sample: Sample, text: str) -> float:
    """1 if `prediction` is the letter, up to case. Known mistakes: `B.`, `B: text` and a bare `B` are wrong."""
    said = official_prediction(text)
    return float(isinstance(said, str) and said.lower() == sample.answer.lower())


def open_official(sample: Sample, text: str, judged: float | None) -> float:
    """1 if the answer stands somewhere in `prediction`, whatever else does ("2" in "12"), else whether the mark is 4 or
    more. Known mistake: a judge without a mark is asked five times, and counts as wrong."""
    said = official_prediction(text)
    if isinstance(said, str) and sample.answer.lower() in said.lower():
        return 1.0
    return float(judged is not None and judged >= PASS_MARK)


def submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The letters, an empty text for an answer that can't be read."""
    rows = [
        {key: each.sample.columns[key] for key in ("id", "dataset")}
        | {"answer": letter_of(each, closed_ours)}
        for each in scored
    ]
    return {"submission.json": written(rows)}


EGOCROSS = Benchmark(
    name="egocross",
    reader=replace(read_egocross, translate=_closed),
    notes="Qwen3-VL-4B 45.1, after supervised fine-tuning on the support set 46.1. Not to be trained on.",
    sources=SOURCES,
    prompt=closed_prompt,
    ours=closed_ours,
    official=closed_official,
    groups=GROUPS,
    submission=submission,
)
EGOCROSS_OPEN = Benchmark(
    name="egocross_open",
    reader=replace(read_egocross, translate=_open),
    notes="The official judge is qwen-max-latest at temperature 0.01, top_p 0.9.",
    sources=SOURCES,
    prompt=open_prompt,
    judge=Judging(
        prompt="egocross",
        prediction=lambda _, text: prediction(text) or (None if "{" in text else text.strip() or None),
        score=lambda mark: float(mark >= PASS_MARK),
        official=open_official,
    ),
    groups=GROUPS,
)
