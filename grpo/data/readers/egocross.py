"""EgoCross (arXiv 2508.10729): `egocross_testbed_answers.json`, as a choice or, by `egocross_open`, without options.

`egocross_testbed_imgs.json` has the same questions without answers, and is refused. A clip is a list of frames in
one folder, 0.5 or 1 per second by the rule of the authors' code (https://github.com/EgoCross-Benchmark/EgoCrossCodes),
or the video that they were joined into: `.../frames/oc_q1.mp4` for `.../frames/oc_q1/`. Not for training: the authors
ask for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from grpo.data.fields import (
    Record,
    as_options,
    as_text,
    check_letter,
    get_name,
    get_text,
    get_value,
    has,
    shown,
    without,
    without_letters,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

OWN_KEYS = ("question_text", "video_path", "options", "correct_option_letter")


def translate_closed(record: Record, place: Place) -> Iterator[Sample]:
    choices = without_letters(as_options(record.get("options")))
    yield Sample(
        id=place.id(get_name(record, "id")),
        question=get_text(record, "question_text"),
        answer=check_letter(get_text(record, "correct_option_letter"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        clip_source=_clip_source(record, place),
        columns=without(record, *OWN_KEYS),
    )


read_egocross = Reader(translate=translate_closed, is_like=has("question_text", "video_path"))


def translate_open(record: Record, place: Place) -> Iterator[Sample]:
    yield Sample(
        # Both sets may be in one mixture.
        id=place.id(f"{get_name(record, 'id')}#open"),
        question=get_text(record, "question_text"),
        answer=get_text(record, "answer_text"),
        task="open",
        source=place.source,
        clip_source=_clip_source(record, place),
        columns=without(record, *OWN_KEYS),
    )


read_egocross_open = Reader(translate=translate_open, is_like=read_egocross.is_like)


def _clip_source(record: Record, place: Place) -> ClipSource:
    """The frames, whose paths begin with a slash and start from the media root, or the video they were joined into."""
    frames = get_value(record, "video_path")
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"'video_path' must be a list of frames, not {shown(frames)}")
    paths = [as_text(frame, "video_path").lstrip("/") for frame in frames]
    folders = {os.path.dirname(path) for path in paths}
    if len(folders) > 1:
        raise ValueError(f"the frames of 'video_path' lie in several folders: {shown(sorted(folders))}")
    if video := place.joined_video(folders.pop()):
        return ClipSource(video=video)
    is_dense = record.get("dataset") == "CholecTrack20" and paths[0].endswith(".png")
    return ClipSource(frames=place.images(paths, "video_path"), frame_fps=1.0 if is_dense else 0.5)
