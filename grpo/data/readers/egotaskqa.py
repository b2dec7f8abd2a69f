"""EgoTaskQA as a choice (https://huggingface.co/datasets/nv-njb/EgoTaskQA-MCQ, and EgoThinker's `egotaskqa.json`).

These are the test questions of EgoTaskQA (https://github.com/Buzz-Beater/EgoTaskQA) with five options. Videos are the
`qa_videos` that its authors give out. Their own files, with open answers, are not read: how they name a clip could not
be verified.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import (
    LETTERS,
    Record,
    as_options,
    check_letter,
    get_text,
    get_value,
    has,
    shown,
    without,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    given = get_value(record, "option")
    if not isinstance(given, dict) or sorted(given) != list(LETTERS[: len(given)]):
        raise ValueError(f"'option' must be an object with the keys A, B and so on, not {shown(given)}")
    choices = as_options([given[letter] for letter in sorted(given)], "option")
    yield Sample(
        id=place.id(str(place.number)),
        question=get_text(record, "q"),
        answer=check_letter(get_text(record, "a"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=place.media(get_text(record, "video_path"))),
        columns=without(record, "q", "a", "option"),
    )


read_egotaskqa = Reader(translate=translate, is_like=has("q", "video_path", "option"))
