"""EgoTempo (https://github.com/google-research-datasets/egotempo): `egotempo_openQA.json`.

Videos are the clips that its notebook cuts out of Ego4D, `<clip_id>.mp4`.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import Record, get_text, lists, without
from grpo.data.files import under
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    file = f"{get_text(record, 'clip_id').removesuffix('.mp4')}.mp4"
    yield Sample(
        id=place.id(get_text(record, "question_id")),
        question=get_text(record, "question"),
        answer=get_text(record, "answer"),
        task="open",
        source=place.source,
        clip_source=ClipSource(video=place.media(file)),
        columns=without(record, "question", "answer"),
    )


read_egotempo = Reader(
    translate=translate,
    is_like=lists("annotations", "clip_id", "question_id"),
    unfold=under("annotations"),
)
