"""Ego4D's natural language queries (https://ego4d-data.org/docs/benchmarks/episodic-memory): `nlq_{train,val}.json`.

A query asks for the span of the canonical clip (`<clip_uid>.mp4`) that answers it; the span is both the answer (the
task "span") and the key moment. Two kinds of entry ask for nothing and are left out, their number logged: those without
a query, and those whose span has no length.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import (
    ANSWER_WITH_A_SPAN,
    Record,
    as_seconds,
    get_objects,
    get_text,
    get_value,
    lists,
    on_clips_clock,
    without,
)
from grpo.data.files import under
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

QUESTION = f'When does the video show what answers the question "{{query}}"? {ANSWER_WITH_A_SPAN}'
"""The queries alone ask for a thing or a place, never for a time."""


def translate(record: Record, place: Place) -> Iterator[Sample]:
    for clip in get_objects(record, "clips"):
        for annotation in get_objects(clip, "annotations"):
            for index, query in enumerate(get_objects(annotation, "language_queries")):
                # As QaEgo4D names its samples.
                name = f"{get_text(annotation, 'annotation_uid')}_{index}"
                try:
                    sample = _sample(clip, query, name, place) if query.get("query") else None
                except ValueError as error:
                    raise ValueError(f"query {name}: {error}") from None
                if sample is not None:
                    yield sample
                else:
                    place.remark("entries that are no questions are left out", name)


def _sample(clip: Record, query: Record, name: str, place: Place) -> Sample | None:
    start_s, end_s = (as_seconds(get_value(query, key), key) for key in ("clip_start_sec", "clip_end_sec"))
    clip_source = ClipSource(video=place.media(f"{get_text(clip, 'clip_uid')}.mp4"))
    span_s = on_clips_clock([(start_s, end_s)], clip_source, key="clip_start_sec")
    answer = f"{start_s:.3f}-{end_s:.3f}"
    if f"{start_s:.3f}" == f"{end_s:.3f}":
        return None
    return Sample(
        id=place.id(name),
        question=QUESTION.format(query=get_text(query, "query").strip()),
        answer=answer,
        task="span",
        source=place.source,
        clip_source=clip_source,
        keyframes_s=span_s,
        columns=without(query, "clip_start_sec", "clip_end_sec"),
    )


read_ego4d_nlq = Reader(translate=translate, is_like=lists("videos", "clips"), unfold=under("videos"))
