"""EgoSchema (https://github.com/egoschema/EgoSchema, arXiv 2308.09126): `questions.json`.

The answers lie beside it in `subset_answers.json`, for 500 of the 5,031 questions; the others' are not published, so
they are left out but for a submission (`read_all_of_egoschema`). `uid_to_ego4d.json`, if it is there too, says which
three minutes of Ego4D a clip is: it becomes the column `ego4d`, by which overlap with other data can be found. Videos
are `videos/<q_uid>.mp4`, as the data set's download script puts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from grpo.data.fields import LETTERS, Record, as_options, get_text, has, shown, without
from grpo.data.files import load_object
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

OPTION_KEYS = tuple(f"option {number}" for number in range(5))


def _beside(file: Path) -> tuple[Record, Record]:
    """The published answers, and the clips' origins in Ego4D."""
    origins = file.with_name("uid_to_ego4d.json")
    return load_object(file.with_name("subset_answers.json")), load_object(
        origins
    ) if origins.is_file() else {}


def translate_all(record: Record, place: Place) -> Iterator[Sample]:
    answers, ego4d = place.beside
    uid = get_text(record, "q_uid")
    choices = as_options([record.get(key) for key in OPTION_KEYS], "option 0 to 4")
    answer = answers.get(uid)
    if uid in answers and (type(answer) is not int or not 0 <= answer < len(choices)):
        raise ValueError(
            f"its answer in subset_answers.json must be 0 to {len(choices) - 1}, not {shown(answer)}"
        )
    origin = {"ego4d": ego4d[uid]} if uid in ego4d else {}
    yield Sample(
        id=place.id(uid),
        question=get_text(record, "question"),
        answer=LETTERS[answer] if type(answer) is int else "",
        task="choice",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=place.media(f"videos/{uid}.mp4")),
        columns=without(record, "question", *OPTION_KEYS) | origin,
    )


def translate(record: Record, place: Place) -> Iterator[Sample]:
    for sample in translate_all(record, place):
        if sample.answer:
            yield sample
        else:
            place.remark("questions without a published answer are left out", sample.columns["q_uid"])


read_egoschema = Reader(translate=translate, is_like=has("q_uid", "option 4"), beside=_beside)
read_all_of_egoschema = replace(read_egoschema, translate=translate_all)
