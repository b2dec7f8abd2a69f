"""The native record: JSON Lines, one question per line.

    {"id": "k-0017", "video": "clips/k-0017.mp4", "start_s": 12.0, "end_s": 42.0,
     "question": "What did I pick up?", "options": ["a cup", "a knife"], "answer": "B", "task": "choice",
     "keyframes_s": [[18.0, 19.5], 30.0]}

Paths start from the media root. All times count from the start of the file; `keyframes_s` holds spans or
single moments. Other keys are kept as columns for rewards. Nothing is guessed or dropped: a record that
is not right raises with file and line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never, TypeGuard, get_args

from grpo.groups import Sample, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TASKS: tuple[str, ...] = get_args(Task)
OWN_KEYS = frozenset(
    ("id", "video", "start_s", "end_s", "question", "options", "answer", "task", "keyframes_s")
)
NOT_YET_KEYS = ("frames", "images", "frame_fps", "frame_times_s")
CLIP_KEYS = ("start_s", "end_s", "keyframes_s")

Record = Mapping[str, Any]


def read_jsonl(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    """The file's samples, in order; empty lines are skipped.

    media_root: folder that the records' media paths start from; None is the folder of the file. Raises
    FileNotFoundError, and ValueError as `file:line: what`.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such dataset file")
    root = Path(path).parent if media_root is None else Path(media_root)
    samples: dict[str, Sample] = {}
    # Read as bytes: a line ends at \n and nowhere else, and broken text is one line's fault.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                sample = _to_sample(_parse(line), root, source)
                if sample.id in samples:
                    raise ValueError(f"id {sample.id!r} was already used in {samples[sample.id].source}")
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
            samples[sample.id] = sample
    if not samples:
        raise ValueError(f"{path}: no records")
    return list(samples.values())


def _parse(line: bytes) -> Record:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        record = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"not readable as JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not readable as JSON: nested too deeply") from None
    if type(record) is not dict:
        raise ValueError(f"a record is a JSON object, not {_shown(record)}")
    return record


def _to_sample(record: Record, root: Path, source: str) -> Sample:
    for key in NOT_YET_KEYS:
        if key in record:
            raise ValueError(f"{key!r} is not supported yet; give a 'video'")
    task = _text(record, "task")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    options = _options(record, task)
    video = _text(record, "video") if record.get("video") is not None else None
    start_s, end_s = _clip_bounds(record, has_video=video is not None)
    return Sample(
        id=_text(record, "id"),
        question=_text(record, "question"),
        answer=_answer(record, task, options),
        task=task,  # pyright: ignore[reportArgumentType] (it is one of TASKS)
        source=source,
        options=options,
        video=None if video is None else str(root / video),
        start_s=start_s,
        end_s=end_s,
        keyframes_s=_keyframes(record, start_s, end_s),
        columns={key: value for key, value in record.items() if key not in OWN_KEYS},
    )


def _options(record: Record, task: str) -> tuple[str, ...]:
    options = record.get("options")
    if task != "choice":
        if options:
            raise ValueError(f"'options' belong to the task 'choice', not {task!r}")
        return ()
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"'options' must be a list of 2 to {len(LETTERS)} texts, not {_shown(options)}")
    texts = tuple(_as_text(option, "options") for option in options)
    for text in texts:
        if [other.strip() for other in texts].count(text.strip()) > 1:
            raise ValueError(f"option {text!r} is there twice")
    return texts


def _answer(record: Record, task: str, options: tuple[str, ...]) -> str:
    answer = record.get("answer")
    if task in ("number", "regression") and _is_number(answer):
        return str(answer)
    text = _text(record, "answer")
    if task == "choice" and text not in list(LETTERS[: len(options)]):
        raise ValueError(f"answer {text!r} is not one of the options A to {LETTERS[len(options) - 1]}")
    return text


def _clip_bounds(record: Record, *, has_video: bool) -> tuple[float, float | None]:
    for key in CLIP_KEYS:
        if not has_video and record.get(key) is not None:
            raise ValueError(f"{key!r} without a 'video'")
    start_s = 0.0 if record.get("start_s") is None else _seconds(record["start_s"], "start_s")
    if record.get("end_s") is None:
        return start_s, None
    end_s = _seconds(record["end_s"], "end_s")
    if end_s <= start_s:
        raise ValueError(f"'end_s' ({end_s:g}) must lie behind 'start_s' ({start_s:g})")
    return start_s, end_s


def _keyframes(record: Record, start_s: float, end_s: float | None) -> tuple[tuple[float, float], ...]:
    """Spans in seconds from the clip's start."""
    keyframes = record.get("keyframes_s")
    if keyframes is None:
        return ()
    if type(keyframes) is not list:
        raise ValueError(f"'keyframes_s' must be a list of moments or spans, not {_shown(keyframes)}")
    spans = [_span(keyframe) for keyframe in keyframes]
    for first_s, last_s in spans:
        if first_s < start_s or (end_s is not None and last_s > end_s):
            until = "the file's end" if end_s is None else f"{end_s:g} s"
            raise ValueError(
                f"'keyframes_s': {first_s:g} to {last_s:g} s lies outside the clip, {start_s:g} s to {until}"
            )
    return tuple((first_s - start_s, last_s - start_s) for first_s, last_s in spans)


def _span(keyframe: object) -> tuple[float, float]:
    ends = keyframe if isinstance(keyframe, list) else [keyframe, keyframe]
    if len(ends) != 2:
        raise ValueError(f"'keyframes_s': a span is [start, end], not {_shown(keyframe)}")
    first_s, last_s = (_seconds(end, "keyframes_s") for end in ends)
    if last_s < first_s:
        raise ValueError(f"'keyframes_s': {_shown(keyframe)} ends before it starts")
    return first_s, last_s


def _text(record: Record, key: str) -> str:
    if record.get(key) is None:
        raise ValueError(f"{key!r} is missing")
    return _as_text(record[key], key)


def _as_text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be a text that is not empty, not {_shown(value)}")
    # JSON can spell half of a surrogate pair, which no tokenizer or file system takes.
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{key!r} is not valid Unicode: {_shown(value)}")
    return value


def _seconds(value: object, key: str) -> float:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{key!r} must be in seconds, 0 or more, not {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key!r} is too large: {_shown(value)}") from None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"not readable as JSON: {name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record
