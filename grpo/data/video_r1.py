"""Video-R1's JSON (https://github.com/tulerfeng/Video-R1, arXiv 2503.21776): `Video-R1-260k.json` and its like.

`problem`, `options` ("A. text"), `solution` (`<answer>B</answer>`), `path`, `problem_type`. More than half of
the published file is about single images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from grpo.data.fields import Record, check_letter, name, options, shown, text, without, without_letters
from grpo.data.records import Place, read_samples
from grpo.groups import Sample, Task
from grpo.media.clip import ClipSource

TASK_OF_TYPE: dict[str, Task] = {
    "multiple choice": "choice",
    "numerical": "number",
    "OCR": "ocr",
    "free-form": "open",
    "regression": "regression",
}
SOLUTION = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
OWN_KEYS = ("problem", "problem_type", "data_type", "options", "solution", "path")


def read_video_r1(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    return read_samples(path, media_root, translate)


def translate(record: Record, place: Place) -> Iterator[Sample]:
    kind = text(record, "data_type")
    if kind not in ("video", "image"):
        raise ValueError(f"'data_type' must be video or image, not {shown(kind)}")
    problem_type = text(record, "problem_type")
    if problem_type not in TASK_OF_TYPE:
        raise ValueError(f"unknown 'problem_type' {problem_type!r}; there are {', '.join(TASK_OF_TYPE)}")
    task = TASK_OF_TYPE[problem_type]
    choices = without_letters(options(record.get("options"))) if task == "choice" else ()
    answer = _answer(text(record, "solution"))
    path = place.media(text(record, "path"))
    yield Sample(
        id=place.id(name(record, "problem_id")),
        question=text(record, "problem"),
        answer=check_letter(answer, len(choices)) if task == "choice" else answer,
        task=task,
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=path) if kind == "video" else ClipSource(frames=(path,)),
        columns=without(record, *OWN_KEYS),
    )


def _answer(solution: str) -> str:
    match = SOLUTION.fullmatch(solution)
    if match is None or not match[1].strip():
        raise ValueError(f"'solution' must be <answer>...</answer>, not {shown(solution)}")
    return match[1].strip()
