"""NExT-QA (https://github.com/doc-doc/NExT-QA): the CSV files, with options (`a0` to `a4`) or with open answers.

Videos are VidOR's, `<folder>/<video>.mp4` by the `map_vid_vidorID.json` beside the file, or `<video>.mp4` without it.
NExT-GQA's files (https://github.com/doc-doc/NExT-GQA) have the right option's text as the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grpo.data.fields import LETTERS, Record, as_options, get_name, get_text, has, shown, without
from grpo.data.files import load_object
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

OPTION_KEYS = tuple(f"a{number}" for number in range(5))


def _videos(file: Path) -> Record:
    """The videos' paths without their ending, by the ids in the data set."""
    ids = file.with_name("map_vid_vidorID.json")
    return load_object(ids) if ids.is_file() else {}


def translate(record: Record, place: Place) -> Iterator[Sample]:
    video = get_name(record, "video" if record.get("video") is not None else "video_id")
    path = get_text(place.beside, video) if place.beside else video
    is_choice = record.get("a0") is not None
    choices = as_options([record.get(key) for key in OPTION_KEYS], "a0 to a4") if is_choice else ()
    answer = get_name(record, "answer")
    yield Sample(
        id=place.id(f"{video}_{get_name(record, 'qid')}"),
        question=get_text(record, "question"),
        answer=_letter(answer, choices) if is_choice else answer,
        task="choice" if is_choice else "open",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=place.media(f"{path}.mp4")),
        columns=without(record, "question", "answer", *OPTION_KEYS),
    )


def _letter(answer: str, choices: tuple[str, ...]) -> str:
    if answer in choices:
        return LETTERS[choices.index(answer)]
    if answer not in [*map(str, range(len(choices)))]:
        raise ValueError(
            f"answer {shown(answer)} is neither 0 to {len(choices) - 1} nor the text of an option"
        )
    return LETTERS[int(answer)]


read_nextqa = Reader(translate=translate, is_like=has("question", "qid", "type"), beside=_videos)
