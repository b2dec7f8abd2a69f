"""VSI-Bench (https://huggingface.co/datasets/nyu-visionx/VSI-Bench): `test-00000-of-00001.parquet`.

A question with options is a choice, any other asks for a number that is graded (the task "regression"). Videos are
`<dataset>/<scene_name>.mp4`, as its three archives unpack.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import (
    Record,
    as_options,
    check_letter,
    get_name,
    get_text,
    has,
    holds_number,
    shown,
    without,
    without_letters,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    choices = without_letters(as_options(record["options"])) if record.get("options") else ()
    answer = get_name(record, "ground_truth")
    if choices:
        check_letter(answer, len(choices))
    elif not holds_number(answer):
        raise ValueError(f"'ground_truth' must be a number without options, not {shown(answer)}")
    video = f"{get_text(record, 'dataset')}/{get_text(record, 'scene_name')}.mp4"
    yield Sample(
        id=place.id(get_name(record, "id")),
        question=get_text(record, "question"),
        answer=answer,
        task="choice" if choices else "regression",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=place.media(video)),
        columns=without(record, "question", "ground_truth", "options"),
    )


read_vsi_bench = Reader(translate=translate, is_like=has("scene_name", "question_type", "ground_truth"))
