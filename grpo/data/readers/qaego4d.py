"""QaEgo4D (https://github.com/lbaermann/qaego4d): `annotations.{train,val,test}.json`.

Videos are Ego4D's canonical clips, `<video_id>.mp4`. The moment that shows the answer becomes a key moment.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import Record, get_number, get_text, has, on_clips_clock, without
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

FPS = 30
"""Frames per second of all canonical clips; the data set counts its moments in these, and in parts of them."""


def translate(record: Record, place: Place) -> Iterator[Sample]:
    moment_s = (get_number(record, "moment_start_frame") / FPS, get_number(record, "moment_end_frame") / FPS)
    clip_source = ClipSource(video=place.media(f"{get_text(record, 'video_id')}.mp4"))
    yield Sample(
        id=place.id(get_text(record, "sample_id")),
        question=get_text(record, "question"),
        answer=get_text(record, "answer"),
        task="open",
        source=place.source,
        clip_source=clip_source,
        keyframes_s=on_clips_clock([moment_s], clip_source, key="moment_start_frame"),
        columns=without(record, "question", "answer", "moment_start_frame", "moment_end_frame"),
    )


read_qaego4d = Reader(translate=translate, is_like=has("sample_id", "moment_start_frame"))
