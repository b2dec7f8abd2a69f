"""EgoLifeQA (https://egolife-ai.github.io): `EgoLifeQA_A1_JAKE.json`, about a week that six people recorded.

A time is a day and a clock, hours to twentieths of a second without marks between: `11152408` is 11:15:24.40. The
videos, `A1_JAKE/DAY1/DAY1_A1_JAKE_11150000.mp4`, are half a minute long, and named after their beginnings. A question
is asked hours or days behind what it is about (`target_time`); its clip is the one file that shows that moment, which
becomes the key moment. Questions about several moments are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from grpo.data.fields import Record, as_options, check_letter, get_text, get_value, has, shown, without
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource

FPS = 20
"""The frames of a second, which the last two digits of a clock count."""
LONGEST_S = 31.0
"""The length of a file, with a second for frames that come late."""
CLOCK = re.compile(r"([0-2][0-9])([0-5][0-9])([0-5][0-9])([0-9]{2})")
IDENTITY = re.compile(r"A[1-6]_[A-Z]+")
CHOICE_KEYS = ("choice_a", "choice_b", "choice_c", "choice_d")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    name = get_text(record, "ID")
    target = get_value(record, "target_time")
    day, clock = (target.get(key) for key in ("date", "time")) if isinstance(target, dict) else (None, None)
    if not isinstance(clock, str) or not isinstance(day, str) or not CLOCK.fullmatch(clock):
        place.remark("questions about several moments are left out", name)
        return
    choices = as_options([record.get(key) for key in CHOICE_KEYS], "choice_a to choice_d")
    video, moment_s = _file(place, _identity(record, place), day, clock)
    yield Sample(
        id=place.id(name),
        question=get_text(record, "question"),
        answer=check_letter(get_text(record, "answer"), len(choices)),
        task="choice",
        source=place.source,
        options=choices,
        clip_source=ClipSource(video=video),
        keyframes_s=((moment_s, moment_s),),
        columns=without(record, "question", *CHOICE_KEYS, "answer"),
    )


def _identity(record: Record, place: Place) -> str:
    """The person who recorded, whom the record or the file's name tells."""
    if record.get("identity") is not None:
        return get_text(record, "identity")
    match = IDENTITY.search(place.file.stem)
    if match is None:
        raise ValueError(
            "whose videos? 'identity' is missing, and the file is not named EgoLifeQA_A1_JAKE.json"
        )
    return match[0]


def _file(place: Place, identity: str, day: str, clock: str) -> tuple[str, float]:
    """The file that shows the moment, and the moment in seconds from its start."""
    folder = place.media(f"{identity}/{day}")
    if not os.path.isdir(folder):
        raise ValueError(f"no such folder of videos: {folder}")
    moment_s = _seconds(clock)
    starts_s = {
        _seconds(name.removesuffix(".mp4")[-8:]): name for name in os.listdir(folder) if name.endswith(".mp4")
    }
    start_s = max((each for each in starts_s if each <= moment_s), default=-1.0)
    if start_s < 0 or moment_s - start_s > LONGEST_S:
        raise ValueError(f"no file in {folder} shows {clock}")
    return f"{folder}/{starts_s[start_s]}", moment_s - start_s


def _seconds(clock: str) -> float:
    """The clock in seconds of the day."""
    match = CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(f"a clock has eight digits (11152408), not {shown(clock)}")
    hours, minutes, seconds, frames = map(int, match.groups())
    return 3600 * hours + 60 * minutes + seconds + frames / FPS


read_egolife = Reader(translate=translate, is_like=has("query_time", "target_time", "choice_a"))
