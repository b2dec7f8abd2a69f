"""EgoThink (https://github.com/AdaCheng/EgoThink): a task's `annotations.json`, and pictures in `images/` beside it."""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import Record, as_text, get_text, get_value, has, shown, without
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    pictures = get_value(record, "image_path")
    if type(pictures) is not list or len(pictures) != 1:
        raise ValueError(f"'image_path' must be a list of one picture, not {shown(pictures)}")
    # All twelve tasks' files have one name, so that of the folder tells their ids apart.
    task = place.file.parent.name
    yield Sample(
        id=f"{task}/{place.number}",
        question=get_text(record, "question"),
        answer=get_text(record, "answer"),
        task="open",
        source=place.source,
        clip_source=ClipSource(frames=(place.media(f"images/{as_text(pictures[0], 'image_path')}"),)),
        columns=without(record, "question", "answer"),
    )


read_egothink = Reader(translate=translate, is_like=has("source_dataset", "image_path", "question"))
