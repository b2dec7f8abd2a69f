"""HD-EPIC's questions (https://github.com/hd-epic/hd-epic-annotations): a file of `vqa-benchmark/`.

A file is one object, with the questions' ids as keys. Videos are `P01/P01-20240203-123350.mp4`. A clip is the part that
the question names, or the whole video; a question about a picture has the second of video that begins there, as in the
official code. Several inputs stand before the question, each behind its name, as there. Some files write seconds with
one digit before the point (`00:03:1.8`), and `ingredient_ingredients_order.json` has lists for choices, which the
official prompt shows as Python writes them (hd-epic-vqa-eval at d0c233b, `models/base_model.py`).

Times in questions and options (`<TIME 00:01:02.300 video 1>`) become `01:02`, counted from the clip's start, and boxes
(`<BBOX y1 x1 y2 x2>`, in pixels of 1408) become `(y1, x1, y2, x2)` in thousandths, both as the official code writes
them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grpo.data.fields import (
    LETTERS,
    Record,
    as_options,
    check_bounds,
    get_text,
    get_value,
    shown,
    without,
)
from grpo.data.records import Place, Reader
from grpo.groups import MAX_MEDIA, Sample
from grpo.media.clip import ClipSource

SIDE_PX = 1408
TIME_TAG = re.compile(r"<TIME\s+([\d:.]+)\s+([^<>]+?)\s*>")
BOX_TAG = re.compile(r"<BBOX" + r"\s+([\d.]+)" * 4 + r"\s*>")
CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{1,2}(?:\.\d{1,6})?)")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    own_id = get_text(record, "question_id")
    inputs = get_value(record, "inputs")
    if (
        not isinstance(inputs, dict)
        or not inputs
        or not all(isinstance(each, dict) for each in inputs.values())
    ):
        raise ValueError(f"'inputs' must be an object of videos, not {shown(inputs)}")
    if len(inputs) > MAX_MEDIA:
        place.remark(f"questions about more than {MAX_MEDIA} videos or pictures are left out", own_id)
        return
    sources = {name: _clip(each, place) for name, each in inputs.items()}
    clip_source = next(iter(sources.values()))
    choices = as_options(_as_texts(get_value(record, "choices")), "choices")
    right = get_value(record, "correct_idx")
    if type(right) is not int or not 0 <= right < len(choices):
        raise ValueError(f"'correct_idx' must be 0 to {len(choices) - 1}, not {shown(right)}")
    yield Sample(
        id=place.id(own_id),
        question=(named_inputs(inputs) if len(inputs) > 1 else "")
        + _readable(get_text(record, "question"), sources),
        answer=LETTERS[right],
        task="choice",
        source=place.source,
        options=tuple(_readable(choice, sources) for choice in choices),
        clip_source=clip_source,
        media=tuple(sources.values()) if len(sources) > 1 else (),
        columns=without(record, "question", "choices", "correct_idx")
        | {"prototype": own_id.rpartition("_")[0]},
    )


def named_inputs(inputs: Iterable[str]) -> str:
    """The names of inputs, each before its place."""
    return "".join(f"{name}: <video>" for name in inputs)


def _as_texts(choices: object) -> object:
    """The choices, of which lists of texts are written as Python writes them."""
    if type(choices) is not list:
        return choices
    return [str(each) if type(each) is list and each else each for each in choices]


def _clip(given: Record, place: Place) -> ClipSource:
    video = get_text(given, "id")
    path = place.media(f"{video.split('-')[0]}/{video}.mp4")
    if given.get("time") is not None:
        moment_s = seconds(get_text(given, "time"))
        return ClipSource(video=path, start_s=moment_s, end_s=moment_s + 1)
    if given.get("start_time") is None:
        return ClipSource(video=path)
    start_s, end_s = (seconds(get_text(given, key)) for key in ("start_time", "end_time"))
    check_bounds(start_s, end_s, keys=("start_time", "end_time"))
    return ClipSource(video=path, start_s=start_s, end_s=end_s)


def seconds(clock: str) -> float:
    """The seconds of `HH:MM:SS.fff`."""
    match = CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(f"a time is HH:MM:SS.fff, not {shown(clock)}")
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def _readable(text: str, sources: Mapping[str, ClipSource]) -> str:
    def since_start(tag: re.Match[str]) -> str:
        if len(sources) > 1 and tag[2] not in sources:
            raise ValueError(f"a time is of {shown(tag[2])}, and 'inputs' has {', '.join(sources)}")
        source = sources.get(tag[2]) or next(iter(sources.values()))
        # The official code drops the fractions of both times before it takes their difference.
        return _clock(int(seconds(tag[1])) - int(source.start_s))

    return BOX_TAG.sub(_box, TIME_TAG.sub(since_start, text))


def _clock(past_s: int) -> str:
    return time.strftime("%H:%M:%S" if past_s >= 3600 else "%M:%S", time.gmtime(past_s))


def _box(tag: re.Match[str]) -> str:
    return f"({', '.join(str(int(float(side) / SIDE_PX * 1000)) for side in tag.groups())})"


def _unfold(value: Any) -> object:
    if type(value) is not dict:
        return value
    return [{"question_id": key, **part} if type(part) is dict else part for key, part in value.items()]


def _is_like(record: Record) -> bool:
    parts = (record, next(iter(record.values()), None))
    return any(type(part) is dict and part.keys() >= {"inputs", "choices", "correct_idx"} for part in parts)


read_hd_epic = Reader(translate=translate, is_like=_is_like, unfold=_unfold)
