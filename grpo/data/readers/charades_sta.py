"""Charades-STA (https://github.com/jiyanggao/TALL), and Time-R1's files (https://github.com/www-Ye/Time-R1).

A sentence asks for the span of the video `<name>.mp4` (or `.mkv`, `.webm`) that it describes; the span is both the
answer (the task "span") and the key moment. The data set has a line `AO8RW 0.0 6.9##a person puts a book down.` for
each, Time-R1 an object `{"AO8RW": {"duration": 33.7, "timestamps": [[0.0, 6.9]], "sentences": ["..."]}}`, or a record
with `video`, `timestamp` and `sentence` for each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from grpo.data.fields import (
    ANSWER_WITH_A_SPAN,
    Record,
    get_text,
    get_texts,
    get_value,
    is_number,
    shown,
    span_answer,
    without,
)
from grpo.data.records import Place, Reader
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from rewards.parsing import read_span

LINE = re.compile(r"(\S+)\s+([0-9.]+)\s+([0-9.]+)\s*##(.+)")
ENDINGS = (".mp4", ".mkv", ".webm")
QUESTION = f'When does the video show "{{sentence}}"? {ANSWER_WITH_A_SPAN}'
OWN_KEYS = ("line", "timestamp", "timestamps", "sentence", "sentences")


def translate(record: Record, place: Place) -> Iterator[Sample]:
    video, moments = _moments(record)
    for number, (span, sentence) in enumerate(moments):
        clip_source = ClipSource(video=_file(place, video))
        answer = span_answer(_in_order(span, place), clip_source)
        yield Sample(
            id=place.id(f"{video}_{number}" if "sentences" in record else str(place.number)),
            question=QUESTION.format(sentence=sentence.strip().removesuffix(".")),
            answer=answer,
            task="span",
            source=place.source,
            clip_source=clip_source,
            keyframes_s=tuple(filter(None, [read_span(answer)])),
            columns=without(record, *OWN_KEYS),
        )


def _file(place: Place, video: str) -> str:
    """The path of a video that may be named without its ending: the first ending that there is a file with."""
    if "." in video:
        return place.media(video)
    paths = [place.media(video + ending) for ending in ENDINGS]
    return next(filter(os.path.isfile, paths), paths[0])


def _in_order(span: Any, place: Place) -> Any:
    """The span with its start first: a few of the data set's lines have the end there."""
    if type(span) is list and len(span) == 2 and all(map(is_number, span)) and span[0] > span[1]:
        place.remark("spans whose end stands first are turned round")
        return span[::-1]
    return span


def _moments(record: Record) -> tuple[str, list[tuple[Any, str]]]:
    """The name of the video, and the spans in it with their sentences."""
    if "line" in record:
        match = LINE.fullmatch(record["line"])
        if match is None:
            raise ValueError(f"a line is `name start end##sentence`, not {shown(record['line'])}")
        return match[1], [([float(match[2]), float(match[3])], match[4])]
    if "sentences" not in record:
        return get_text(record, "video"), [(get_value(record, "timestamp"), get_text(record, "sentence"))]
    spans, sentences = get_value(record, "timestamps"), get_texts(record, "sentences")
    if type(spans) is not list or len(spans) != len(sentences):
        raise ValueError(f"'timestamps' must be a list with a span for each sentence, not {shown(spans)}")
    return get_text(record, "video"), [*zip(spans, sentences, strict=True)]


def _unfold(value: Any) -> object:
    """The records of Time-R1's object, which has the videos' names as keys."""
    if type(value) is not dict:
        return value
    return [{"video": name, **part} if type(part) is dict else part for name, part in value.items()]


def _is_like(record: Record) -> bool:
    if isinstance(record.get("line"), str):
        return LINE.fullmatch(record["line"]) is not None
    part = next(iter(record.values()), None)
    return any(
        type(each) is dict and each.keys() >= {"timestamps", "sentences"} for each in (record, part)
    ) or record.keys() >= {"video", "timestamp", "sentence"}


read_charades_sta = Reader(translate=translate, is_like=_is_like, unfold=_unfold)
