"""EgoCross (arXiv 2508.10729): `egocross_testbed_answers.json`, as a choice or, by `egocross_open`, without options.

`egocross_testbed_imgs.json` has the same questions without answers, and is refused. A clip is a folder of frames (0.5
or 1 per second), which has to be joined into a video beside it: `.../frames/oc_q1.mp4` for `.../frames/oc_q1/`.
https://github.com/EgoCross-Benchmark/EgoCrossCodes. Not for training: the authors ask for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from grpo.data.fields import (
    Record,
    as_text,
    check_letter,
    name,
    options,
    present,
    shown,
    text,
    without,
    without_letters,
)
from grpo.data.records import Place, read_samples
from grpo.groups import Sample

OWN_KEYS = ("question_text", "video_path", "options", "correct_option_letter")


def read_egocross(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    return read_samples(path, media_root, translate_closed)


def read_egocross_open(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    return read_samples(path, media_root, translate_open)


def translate_closed(record: Record, place: Place) -> Iterator[Sample]:
    choices = without_letters(options(record.get("options")))
    yield Sample(
        id=place.id(name(record, "id")),
        question=text(record, "question_text"),
        answer=check_letter(text(record, "correct_option_letter"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        video=place.video_of_frames(_folder(record)),
        columns=without(record, *OWN_KEYS),
    )


def translate_open(record: Record, place: Place) -> Iterator[Sample]:
    yield Sample(
        id=place.id(f"{name(record, 'id')}#open"),  # both sets may be in one mixture
        question=text(record, "question_text"),
        answer=text(record, "answer_text"),
        task="open",
        source=place.source,
        video=place.video_of_frames(_folder(record)),
        columns=without(record, *OWN_KEYS),
    )


def _folder(record: Record) -> str:
    """The one folder that the frames lie in, from the media root on: the paths begin with a slash."""
    frames = present(record, "video_path")
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"'video_path' must be a list of frames, not {shown(frames)}")
    folders = {os.path.dirname(as_text(frame, "video_path")) for frame in frames}
    if len(folders) > 1:
        raise ValueError(f"the frames of 'video_path' lie in several folders: {shown(sorted(folders))}")
    return folders.pop().lstrip("/")
