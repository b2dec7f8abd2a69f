"""A sample as the native record (`jsonl.py`) that it would be read from: the way back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from grpo.data.jsonl import OWN_KEYS
from grpo.groups import Sample
from rewards.parsing import read_span


def native_record(sample: Sample, media_root: str | os.PathLike[str]) -> dict[str, Any]:
    """Its fields and columns; a column that is called like a field gets `original_` in front.

    media_root: folder that its media lie under, which paths are made relative to.
    """
    start_s, end_s = sample.start_s, sample.end_s
    has_clip = sample.clip_source is not None
    own = {
        "id": sample.id,
        **_media(sample, Path(media_root)),
        "start_s": start_s if has_clip and start_s else None,
        "end_s": end_s,
        "question": sample.question,
        "options": [*sample.options] or None,
        "answer": _on_the_files_clock(sample),
        "task": sample.task,
        "keyframes_s": [
            [file_seconds(time_s, sample) for time_s in span] for span in sample.keyframes_s
        ] or None,
    }  # fmt: skip
    columns = {f"original_{key}" if key in OWN_KEYS else key: value for key, value in sample.columns.items()}
    return {key: value for key, value in own.items() if value is not None} | columns


def file_seconds(time_s: float, sample: Sample) -> float:
    """A time of the clip on its file's clock, to the microsecond, where a record's times must not leave the clip."""
    inside_s = max(round(sample.start_s + time_s, 6), sample.start_s)
    return inside_s if sample.end_s is None else min(inside_s, sample.end_s)


def _media(sample: Sample, root: Path) -> dict[str, Any]:
    def relative(path: str) -> str:
        return os.path.relpath(path, root)

    if sample.video is not None:
        return {"video": relative(sample.video)}
    if not sample.frames:
        return {}
    if sample.frame_fps is None and not sample.frame_times_s:
        return {"image": relative(sample.frames[0])}
    frames = [relative(path) for path in sample.frames]
    is_folder = len(frames) == 1 and os.path.isdir(sample.frames[0])
    return {
        "frames": frames[0] if is_folder else frames,
        "frame_fps": sample.frame_fps,
        "frame_times_s": [*sample.frame_times_s] or None,
    }


def _on_the_files_clock(sample: Sample) -> str:
    span_s = read_span(sample.answer) if sample.task == "span" else None
    if span_s is None:
        return sample.answer
    return "-".join(str(file_seconds(time_s, sample)) for time_s in span_s)
