"""LLaVA's conversation JSON: EVUD (https://huggingface.co/datasets/AlanaAI/EVUD), EgoIT-99K and their like.

`{"id", "video", "conversations": [{"from": "human", "value": "<video>\\n..."}, {"from": "gpt", "value": ...}]}`.
EgoIT-99K (https://huggingface.co/datasets/lmms-lab/EgoIT-99K) adds a clip's bounds: `start_time` and
`end_time`, or `start_frame`, `end_frame` and `current_observation_frame` (which comes last) with `fps`.
It calls its video `<image>`, as the records of a single picture (`image`) do, and marks with `<speech>` where the
sound would go. VLM-R1 (https://github.com/om-ai-lab/VLM-R1) lists several images under `image`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from grpo.data.fields import (
    Record,
    as_seconds,
    check_bounds,
    get_name,
    get_number,
    get_rate,
    has,
    shown,
)
from grpo.data.readers.conversations import Layout, samples_of
from grpo.data.records import Place, Reader
from grpo.groups import Sample

LAYOUT = Layout(turns=("conversations",))
CLOCK = re.compile(r"(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+(?:\.[0-9]*)?)")
"""A time as `75.5`, `1:15.5` or `0:01:15.5`."""


def translate(record: Record, place: Place) -> Iterator[Sample]:
    yield from samples_of(record, place, LAYOUT, name=get_name(record, "id"), bounds_s=_bounds(record))


read_llava = Reader(translate=translate, is_like=has("id", "conversations"))


def _bounds(record: Record) -> tuple[float, float | None]:
    end_frame = (
        "end_frame" if record.get("current_observation_frame") is None else "current_observation_frame"
    )
    start_s = _seconds(record, "start_time", "start_frame") or 0.0
    end_s = _seconds(record, "end_time", end_frame)
    if end_s is not None:
        check_bounds(start_s, end_s, keys=("start_time", "end_time"))
    return start_s, end_s


def _seconds(record: Record, time_key: str, frame_key: str) -> float | None:
    """The time, or else the frame's; None where the record has neither."""
    time = record.get(time_key)
    if time is not None:
        return _clock(time, time_key) if isinstance(time, str) else as_seconds(time, time_key)
    if record.get(frame_key) is None:
        return None
    if (fps := get_rate(record, "fps")) is None:
        raise ValueError("'fps' is missing")
    return get_number(record, frame_key) / fps


def _clock(time: str, key: str) -> float:
    match = CLOCK.fullmatch(time.strip())
    if match is None:
        raise ValueError(f"{key!r} must be seconds or hours:minutes:seconds, not {shown(time)}")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return as_seconds(3600 * hours + 60 * minutes + rest, key)
