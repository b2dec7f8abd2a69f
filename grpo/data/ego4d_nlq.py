"""Ego4D's natural language queries (https://ego4d-data.org/docs/benchmarks/episodic-memory): `nlq_{train,val}.json`.

A query asks for the span of the canonical clip (`<clip_uid>.mp4`) that answers it; the span is both the answer (the
task "span") and the key moment. Two kinds of entry ask for nothing and are left out, their number logged: those without
a query, and those whose span has no length.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from grpo.data.fields import (
    ANSWER_WITH_A_SPAN,
    Record,
    as_seconds,
    get_objects,
    get_text,
    get_value,
    on_clips_clock,
    without,
)
from grpo.data.records import Place, read_samples
from grpo.groups import Sample
from grpo.media.clip import ClipSource

logger = logging.getLogger(__name__)

QUESTION = f'When does the video show what answers the question "{{query}}"? {ANSWER_WITH_A_SPAN}'
"""The queries alone ask for a thing or a place, never for a time."""


def read_ego4d_nlq(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    left_out: list[str] = []

    def translate(record: Record, place: Place) -> Iterator[Sample]:
        for clip in get_objects(record, "clips"):
            for annotation in get_objects(clip, "annotations"):
                yield from _queries(clip, annotation, place, left_out)

    samples = read_samples(path, media_root, translate=translate, key="videos")
    if left_out:
        logger.info("%s: %d entries are no questions, e.g. %s", path, len(left_out), left_out[0])
    return samples


def _queries(clip: Record, annotation: Record, place: Place, left_out: list[str]) -> Iterator[Sample]:
    for index, query in enumerate(get_objects(annotation, "language_queries")):
        name = f"{get_text(annotation, 'annotation_uid')}_{index}"  # as QaEgo4D names its samples
        if not query.get("query"):
            left_out.append(name)
            continue
        try:
            sample = _sample(clip, query, name, place)
        except ValueError as error:
            raise ValueError(f"query {name}: {error}") from None
        if sample is None:
            left_out.append(name)
        else:
            yield sample


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
