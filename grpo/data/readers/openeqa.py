"""OpenEQA (https://github.com/facebookresearch/open-eqa): `open-eqa-v0.json`.

The question counts as answered by `answer` or by one of the column `extra_answers`. An episode is a folder of frames
under the media root (`hm3d-v0/000-hm3d-...`), with colour images alone in it, and the data set's `frame_fps` in the
config; or the video beside the folder that they were joined into.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo.data.fields import Record, as_text, get_text, has, shown, without
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource


def translate(record: Record, place: Place) -> Iterator[Sample]:
    columns = without(record, "question", "answer")
    if record.get("extra_answers") is not None:
        columns["extra_answers"] = _extra(record["extra_answers"])
    episode = get_text(record, "episode_history")
    video = place.joined_video(episode)
    yield Sample(
        id=place.id(get_text(record, "question_id")),
        question=get_text(record, "question"),
        answer=get_text(record, "answer"),
        task="open",
        source=place.source,
        clip_source=ClipSource(video=video) if video else ClipSource(frames=(place.media(episode),)),
        columns=columns,
    )


read_openeqa = Reader(translate=translate, is_like=has("episode_history", "question_id"))


def _extra(answers: object) -> list[str]:
    """The further answers but for blank ones, which no completion should match; the published file has one."""
    if type(answers) is not list or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"'extra_answers' must be a list of texts, not {shown(answers)}")
    return [as_text(answer, "extra_answers") for answer in answers if answer.strip()]
