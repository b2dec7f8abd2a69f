"""Video-MME (https://huggingface.co/datasets/lmms-lab/Video-MME): `videomme/test-00000-of-00001.parquet`.

Videos are `<videoID>.mp4`, the id that YouTube has for them. Subtitles are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import Record, as_options, check_letter, get_text, has, without, without_letters
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    choices = without_letters(as_options(record.get("options")))
    yield Sample(
        id=place.id(get_text(record, "question_id")),
        question=get_text(record, "question"),
        answer=check_letter(get_text(record, "answer"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=place.media(f"{get_text(record, 'videoID')}.mp4")),
        columns=without(record, "question", "answer", "options"),
    )


read_video_mme = Reader(translate=translate, is_like=has("videoID", "question_id", "task_type"))
