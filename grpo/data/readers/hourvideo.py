"""HourVideo (https://github.com/keshik6/HourVideo): `dev_v1.0_annotations.json`, or the file of all without answers.

A file is one object with the videos' ids in Ego4D as keys, each with `benchmark_dataset`, a list of questions. Videos
are `<id>.mp4`. A question about what comes next (`reasoning/predictive`) ends where its `relevant_timestamps` begin.
Tasks whose options are pictures are left out, their number logged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from grpo.data.fields import Record, as_options, check_letter, get_name, get_text, lists, shown, without
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

OPTION_KEYS = tuple(f"answer_{number}" for number in range(1, 6))
OF_PICTURES = (
    "navigation/room_to_room_image",
    "navigation/object_retrieval_image",
    "reasoning/spatial/layout",
)
PREDICTIVE = "reasoning/predictive"
CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    own_id, kind = get_name(record, "qid"), get_text(record, "task")
    if kind in OF_PICTURES:
        place.remark("questions whose options are pictures are left out", own_id)
        return
    choices = as_options([record.get(key) for key in OPTION_KEYS], "answer_1 to answer_5")
    video = place.media(f"{get_text(record, 'video_uid')}.mp4")
    end_s = _start(get_text(record, "relevant_timestamps")) if kind == PREDICTIVE else None
    yield Sample(
        id=place.id(own_id),
        question=get_text(record, "question"),
        answer=check_letter(get_text(record, "correct_answer_label"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=video, end_s=end_s),
        columns=without(record, "question", "correct_answer_label", *OPTION_KEYS),
    )


def _start(span: str) -> float:
    match = CLOCK.match(span.strip())
    if match is None:
        raise ValueError(f"'relevant_timestamps' must begin with HH:MM:SS, not {shown(span)}")
    hours, minutes, seconds = map(int, match.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def _unfold(value: Any) -> object:
    if type(value) is not dict:
        return value
    return [
        {"video_uid": video, **question} if type(question) is dict else question
        for video, part in value.items()
        for question in (part.get("benchmark_dataset", [part]) if type(part) is dict else [part])
    ]


def _is_like(record: Record) -> bool:
    return any(
        type(part) is dict and lists("benchmark_dataset", "question", "task")(part)
        for part in list(record.values())[:1]
    )


read_hourvideo = Reader(translate=translate, is_like=_is_like, unfold=_unfold)
