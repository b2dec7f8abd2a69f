"""Video-R1's JSON (https://github.com/tulerfeng/Video-R1, arXiv 2503.21776): `Video-R1-260k.json` and its like.

`problem`, `options` ("A. text", in any order), `solution` (`<answer>B</answer>`), `path`, `problem_type`. More than
half of the published file is about single images. The types `open-ended` and `temporal grounding`, whose solutions are
spans (`{"time": [3.0, 4.5]}`, `3.0 to 4.5`), are OneThinker's (https://github.com/tulerfeng/OneThinker).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from grpo.data.fields import (
    ANSWER_WITH_A_SPAN,
    Record,
    as_options,
    check_letter,
    get_name,
    get_text,
    has,
    shown,
    span_answer,
    without,
    without_letters,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample, Task
from grpo.media.clip import ClipSource

TASK_OF_TYPE: dict[str, Task] = {
    "multiple choice": "choice",
    "numerical": "number",
    "OCR": "ocr",
    "free-form": "open",
    "open-ended": "open",
    "regression": "regression",
    "temporal grounding": "span",
}
TIME = re.compile(r'\{\s*"time"\s*:\s*(\[[^\]]*\])\s*\}')
SOLUTION = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
OWN_KEYS = ("problem", "problem_type", "data_type", "options", "solution", "path")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    kind = get_text(record, "data_type")
    if kind not in ("video", "image"):
        raise ValueError(f"'data_type' must be video or image, not {shown(kind)}")
    problem_type = get_text(record, "problem_type")
    if problem_type not in TASK_OF_TYPE:
        raise ValueError(f"unknown 'problem_type' {problem_type!r}; there are {', '.join(TASK_OF_TYPE)}")
    task = TASK_OF_TYPE[problem_type]
    choices = without_letters(as_options(record.get("options"))) if task == "choice" else ()
    path = place.media(get_text(record, "path"))
    clip_source = ClipSource(video=path) if kind == "video" else ClipSource(frames=(path,))
    question = get_text(record, "problem")
    yield Sample(
        id=place.id(get_name(record, "problem_id")),
        question=f"{question} {ANSWER_WITH_A_SPAN}" if task == "span" else question,
        answer=_answer(_solution(get_text(record, "solution")), task, len(choices), clip_source),
        task=task,
        source=place.source,
        options=choices,
        clip_source=clip_source,
        columns=without(record, *OWN_KEYS),
    )


read_video_r1 = Reader(translate=translate, is_like=has("problem", "problem_type", "solution", "path"))


def _answer(solution: str, task: Task, num_options: int, clip_source: ClipSource) -> str:
    if task == "choice":
        return check_letter(solution, num_options)
    return span_answer(TIME.sub(r"\1", solution), clip_source) if task == "span" else solution


def _solution(solution: str) -> str:
    match = SOLUTION.fullmatch(solution)
    if match is None or not match[1].strip():
        raise ValueError(f"'solution' must be <answer>...</answer>, not {shown(solution)}")
    return match[1].strip()
