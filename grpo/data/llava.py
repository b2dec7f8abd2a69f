"""LLaVA's conversation JSON: EVUD (https://huggingface.co/datasets/AlanaAI/EVUD), EgoIT-99K and their like.

`{"id", "video", "conversations": [{"from": "human", "value": "<video>\\n..."}, {"from": "gpt", "value": ...}]}`.
EgoIT-99K (https://huggingface.co/datasets/lmms-lab/EgoIT-99K) adds a clip's bounds: `start_time` and
`end_time`, or `start_frame`, `end_frame` and `current_observation_frame` (which comes last) with `fps`.
It calls its video `<image>`, as the records of a single picture (`image`) do, and marks with `<speech>` where the
sound would go, which no model here hears. A `system` turn in front is kept as the column `system` and not shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from grpo.data.conversations import (
    Exchange,
    Tags,
    exchanges,
    said_system,
    samples_of,
    without_media,
    without_system,
)
from grpo.data.fields import (
    Record,
    as_seconds,
    check_bounds,
    get_name,
    get_number,
    get_objects,
    get_rate,
    get_text,
    shown,
    without,
)
from grpo.data.records import Place, read_samples
from grpo.groups import Sample
from grpo.media.clip import ClipSource

SPEECH = re.compile(r"<speech>\s*")
CLOCK = re.compile(r"(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+(?:\.[0-9]*)?)")
"""`75.5`, `1:15.5` or `0:01:15.5`."""


def read_llava(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    return said_system(path, read_samples(path, media_root, translate=translate))


def translate(record: Record, place: Place) -> Iterator[Sample]:
    video, image = (
        None if record.get(key) is None else place.media(get_text(record, key)) for key in ("video", "image")
    )
    if video and image:
        raise ValueError("a 'video' and an 'image' in a question are not supported")
    system, spoken = without_system(get_objects(record, "conversations"), Tags())
    turns, num_media = without_media(exchanges(spoken, Tags()))
    if max(num_media) > bool(video or image):
        several = "several clips in a question are not supported"
        what = several if video or image else "a media token without a 'video' or an 'image'"
        raise ValueError(f"{what}: {shown(record['conversations'])}")
    yield from samples_of(
        [Exchange(SPEECH.sub("", turn.question), turn.reply) for turn in turns],
        place,
        name=get_name(record, "id"),
        clip_source=_clip_source(record, video, image),
        columns=without(record, "conversations", "video", "image") | system,
    )


def _clip_source(record: Record, video: str | None, image: str | None) -> ClipSource | None:
    start_s, end_s = _bounds(record)
    if not (video or image):
        return None
    return ClipSource(video=video, frames=(image,) if image else (), start_s=start_s, end_s=end_s)


def _bounds(record: Record) -> tuple[float, float | None]:
    end_frame = (
        "end_frame" if record.get("current_observation_frame") is None else "current_observation_frame"
    )
    start_s = _seconds(record, "start_time", "start_frame")
    end_s = _seconds(record, "end_time", end_frame)
    if end_s is not None:
        check_bounds(start_s or 0.0, end_s, keys=("start_time", "end_time"))
    return start_s or 0.0, end_s


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
