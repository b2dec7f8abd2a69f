"""Records of motion data sets, the same for synthetic and recorded motion: a file per split and task, and its streams.

The tasks are EgoLM's (arXiv 2409.18127): tracking (sensors, with or without the clip, to motion), understanding
(sensors and clip to text), motion to text and text to motion. `<sensor>`, `<head>` and `<motion>` stand for codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo.codec.streams import Stream, write_stream
from grpo.motion.features import MOTION, SENSORS, motion_features, sensor_features


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is asked, with which streams and whether about the clip, and what is to be answered."""

    question: str
    streams: tuple[str, ...]
    has_clip: bool
    target: str
    """The answer; {text} is the narration."""


TASKS: Mapping[str, Task] = {
    "tracking": Task(
        question="<sensor> Track.", streams=("sensor", "motion"), has_clip=True, target="<motion>"
    ),
    "tracking_blind": Task(
        question="<sensor> Track.", streams=("sensor", "motion"), has_clip=False, target="<motion>"
    ),
    "tracking_head": Task(
        question="<head> Track.", streams=("head", "motion"), has_clip=True, target="<motion>"
    ),
    "understanding": Task(question="<sensor> Describe.", streams=("sensor",), has_clip=True, target="{text}"),
    "motion_to_text": Task(
        question="<motion> Describe.", streams=("motion",), has_clip=False, target="{text}"
    ),
    "text_to_motion": Task(question="{text} Move.", streams=("motion",), has_clip=False, target="<motion>"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of motion with what was seen and told of it, as a data set has it."""

    id: str
    text: str
    """The narration; empty where there is none, and then the tasks with texts are left out."""
    video: str | None
    """The clip, from the data set's folder on; None where there is none."""
    start_s: float = 0.0
    """Where the stretch starts in the clip."""
    end_s: float | None = None
    """Where it ends; None: with the clip."""


def streams_of(
    positions_TJ3: np.ndarray, rotations_TJ33: np.ndarray, *, rate_hz: float, start_s: float = 0.0
) -> dict[str, Stream]:
    """A stretch's streams by name: "motion", "sensor" (head and wrists) and "head" (that one alone)."""
    columns = {
        "motion": (motion_features(positions_TJ3, rate_hz), MOTION),
        **{
            name: (sensor_features(positions_TJ3, rotations_TJ33, rate_hz, points), SENSORS[points])
            for name, points in (("sensor", 3), ("head", 1))
        },
    }
    return {
        name: Stream(
            values_TC=values_TC,
            rate_hz=rate_hz,
            start_s=start_s,
            channels=tuple(units),
            units=tuple(units.values()),
        )
        for name, (values_TC, units) in columns.items()
    }


def write_streams(folder: Path, id: str, streams: Mapping[str, Stream]) -> None:
    """Write a stretch's streams where its records say that they are."""
    for name, stream in streams.items():
        path = folder / stream_path(id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_stream(path, stream)


def stream_path(id: str, name: str) -> str:
    return f"streams/{id}.{name}.npz"


def write_records(folder: Path, split: str, windows: Sequence[Window]) -> None:
    """Write a file of records for each task that some stretch can be asked, `SPLIT.TASK.jsonl`."""
    for name, task in TASKS.items():
        records = [record_of(name, task, each) for each in windows if _can_ask(task, each)]
        if records:
            _write_lines(folder / f"{split}.{name}.jsonl", records)


def record_of(name: str, task: Task, window: Window) -> dict[str, Any]:
    """A stretch as a native record of a task."""
    bounds = {"start_s": window.start_s or None, "end_s": window.end_s}
    shown = {"video": window.video, **bounds} if task.has_clip else {}
    record = {
        "id": f"{window.id}/{name}",
        **shown,
        "question": task.question.format(text=window.text),
        "answer": window.text or name,
        "task": "open",
        "streams": {each: stream_path(window.id, each) for each in task.streams},
        "target": task.target.format(text=window.text),
    }
    return {key: value for key, value in record.items() if value is not None}


def _can_ask(task: Task, window: Window) -> bool:
    needs_text = "{text}" in task.question + task.target
    return (bool(window.text) or not needs_text) and (window.video is not None or not task.has_clip)


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
