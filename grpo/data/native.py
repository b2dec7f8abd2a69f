"""A sample as the native record (`readers/jsonl.py`) that it would be read from: the way back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo.data.readers.jsonl import FRAME_KEYS, OWN_KEYS
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from rewards.parsing import read_videos_span


def native_record(sample: Sample, media_root: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a sample; a column that is called like a field gets `original_` in front.

    media_root: folder that its media lie under, which paths are made relative to.
    """
    own = {
        "id": sample.id,
        **_shown(sample, Path(media_root)),
        "question": sample.question,
        "options": [*sample.options] or None,
        "answer": _on_the_files_clock(sample),
        "task": sample.task,
        "system": sample.system or None,
        "keyframes_s": [
            [file_seconds(time_s, sample.clip_source) for time_s in span] for span in sample.keyframes_s
        ] or None,
        "streams": {name: os.path.relpath(path, media_root) for name, path in sample.streams.items()} or None,
    }  # fmt: skip
    columns = {f"original_{key}" if key in OWN_KEYS else key: value for key, value in sample.columns.items()}
    return {key: value for key, value in own.items() if value is not None} | columns


def own_fields(sample: Sample) -> set[str]:
    """The keys of the native record that a sample has values for; a picture counts as each way to give one."""
    source = sample.clip_source
    values = {
        **dict.fromkeys(("id", "question", "answer", "task"), True),
        **{key: getattr(sample, key) for key in ("options", "system", "keyframes_s", "streams")},
        **{key: getattr(source, key, None) for key in ("video", "start_s", "end_s", *FRAME_KEYS)},
        **dict.fromkeys(("frames", "image", "images"), source and source.frames),
        "media": sample.media,
        "frame_s": source and source.is_picture and source.video,
    }
    return {key for key, value in values.items() if value}


def file_seconds(time_s: float, source: ClipSource | None) -> float:
    """A time of a clip on its file's clock, to the microsecond, where a record's times must not leave the clip."""
    if source is None:
        return round(time_s, 6)
    inside_s = max(round(source.start_s + time_s, 6), source.start_s)
    return inside_s if source.end_s is None else min(inside_s, source.end_s)


def _shown(sample: Sample, root: Path) -> dict[str, Any]:
    """The keys of what is shown: of the one clip, or the list of several, where a second video has its key moments."""
    if not sample.media:
        return _media(sample.clip_source, root) if sample.clip_source else {}
    spans_s = iter(((), *sample.other_keyframes_s))
    return {"media": [_listed(source, root, spans_s) for source in sample.media]}


def _listed(
    source: ClipSource, root: Path, spans_s: Iterator[tuple[tuple[float, float], ...]]
) -> dict[str, Any]:
    """One of several media, with the key moments that are next, if it is a video."""
    own = () if source.is_picture else next(spans_s, ())
    moments = [[round(source.start_s + time_s, 6) for time_s in span] for span in own] or None
    entry = _media(source, root) | {"keyframes_s": moments}
    return {key: value for key, value in entry.items() if value is not None}


def _media(source: ClipSource, root: Path) -> dict[str, Any]:
    if source.video is not None and source.is_picture:
        return {"video": os.path.relpath(source.video, root), "frame_s": source.start_s}
    bounds = {"start_s": source.start_s or None, "end_s": source.end_s}
    if source.video is not None:
        return {"video": os.path.relpath(source.video, root)} | bounds
    frames = [os.path.relpath(path, root) for path in source.frames]
    if source.is_picture:
        return {"image": frames[0]} | bounds
    is_folder = len(frames) == 1 and os.path.isdir(source.frames[0])
    timing = {"frame_fps": source.frame_fps, "frame_times_s": [*source.frame_times_s] or None}
    return {"frames": frames[0] if is_folder else frames} | timing | bounds


def _on_the_files_clock(sample: Sample) -> str:
    read = read_videos_span(sample.answer, sample.num_videos) if sample.task == "span" else None
    if read is None:
        return sample.answer
    number, span_s = read
    source, mark = (sample.videos[number - 1], f"{number}: ") if number > 1 else (sample.clip_source, "")
    return mark + "-".join(str(file_seconds(time_s, source)) for time_s in span_s)
