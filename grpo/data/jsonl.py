"""The native record: JSON Lines, one question per line.

    {"id": "k-0017", "video": "clips/k-0017.mp4", "start_s": 12.0, "end_s": 42.0,
     "question": "What did I pick up?", "options": ["a cup", "a knife"], "answer": "B", "task": "choice",
     "keyframes_s": [[18.0, 19.5], 30.0]}

Paths start from the media root. All times count from the start of the file, also those of an answer of the
task "span" (`18.0-19.5`); `keyframes_s` holds spans or single moments. A sample's times, its answer's too,
count from its clip's start. Other keys are kept as columns for rewards. Nothing is guessed or dropped: a record that
is not right raises with file and line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from grpo.data.fields import (
    TASKS,
    Record,
    Span,
    as_text,
    check_bounds,
    check_letter,
    is_number,
    on_clips_clock,
    options,
    seconds,
    shown,
    text,
    without,
)
from grpo.data.records import Place, read_samples
from grpo.groups import Sample
from rewards.parsing import read_span

OWN_KEYS = ("id", "video", "start_s", "end_s", "question", "options", "answer", "task", "keyframes_s")
NOT_YET_KEYS = ("frames", "images", "frame_fps", "frame_times_s")
CLIP_KEYS = ("start_s", "end_s", "keyframes_s")


def read_jsonl(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    """The file's samples, in order; empty lines are skipped.

    media_root: folder that the records' media paths start from; None is the folder of the file. Raises
    FileNotFoundError, and ValueError as `file:line: what`.
    """
    return read_samples(path, media_root, translate, lines=True)


def translate(record: Record, place: Place) -> Iterator[Sample]:
    for key in NOT_YET_KEYS:
        if key in record:
            raise ValueError(f"{key!r} is not supported yet; give a 'video'")
    task = text(record, "task")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    choices = _options(record, task)
    video = text(record, "video") if record.get("video") is not None else None
    start_s, end_s = _clip_bounds(record, has_video=video is not None)
    yield Sample(
        id=text(record, "id"),
        question=text(record, "question"),
        answer=_answer(record, task, choices, start_s, end_s),
        task=task,  # pyright: ignore[reportArgumentType] (it is one of TASKS)
        source=place.source,
        options=choices,
        video=None if video is None else str(place.root / video),
        start_s=start_s,
        end_s=end_s,
        keyframes_s=_keyframes(record, start_s, end_s),
        columns=without(record, *OWN_KEYS),
    )


def _options(record: Record, task: str) -> tuple[str, ...]:
    given = record.get("options")
    if task != "choice":
        if given:
            raise ValueError(f"'options' belong to the task 'choice', not {task!r}")
        return ()
    texts = options(given)
    for choice in texts:
        if [other.strip() for other in texts].count(choice.strip()) > 1:
            raise ValueError(f"option {choice!r} is there twice")
    return texts


def _answer(record: Record, task: str, choices: tuple[str, ...], start_s: float, end_s: float | None) -> str:
    answer = record.get("answer")
    if task in ("number", "regression") and is_number(answer):
        return str(answer)
    if answer is None:
        raise ValueError("'answer' is missing")
    given = as_text(answer, "answer")
    if task == "choice":
        return check_letter(given, len(choices))
    return _span_answer(given, start_s, end_s) if task == "span" else given


def _span_answer(given: str, start_s: float, end_s: float | None) -> str:
    """The span in seconds from the clip's start, to the millisecond: 18.3 - 12.1 is 6.199999999999999."""
    span_s = read_span(given)
    if span_s is None or round(span_s[0], 3) == round(span_s[1], 3):
        raise ValueError(f"'answer' must be a span in seconds, such as 3.0-4.5, not {shown(given)}")
    ((first_s, last_s),) = on_clips_clock([span_s], start_s, end_s, key="answer")
    return f"{round(first_s, 3)}-{round(last_s, 3)}"


def _clip_bounds(record: Record, *, has_video: bool) -> tuple[float, float | None]:
    for key in CLIP_KEYS:
        if not has_video and record.get(key) is not None:
            raise ValueError(f"{key!r} without a 'video'")
    start_s = 0.0 if record.get("start_s") is None else seconds(record["start_s"], "start_s")
    if record.get("end_s") is None:
        return start_s, None
    end_s = seconds(record["end_s"], "end_s")
    check_bounds(start_s, end_s, keys=("start_s", "end_s"))
    return start_s, end_s


def _keyframes(record: Record, start_s: float, end_s: float | None) -> tuple[Span, ...]:
    """Spans in seconds from the clip's start."""
    keyframes = record.get("keyframes_s")
    if keyframes is None:
        return ()
    if type(keyframes) is not list:
        raise ValueError(f"'keyframes_s' must be a list of moments or spans, not {shown(keyframes)}")
    return on_clips_clock([_span(keyframe) for keyframe in keyframes], start_s, end_s, key="keyframes_s")


def _span(keyframe: object) -> Span:
    ends = keyframe if isinstance(keyframe, list) else [keyframe, keyframe]
    if len(ends) != 2:
        raise ValueError(f"'keyframes_s': a span is [start, end], not {shown(keyframe)}")
    first_s, last_s = (seconds(end, "keyframes_s") for end in ends)
    if last_s < first_s:
        raise ValueError(f"'keyframes_s': {shown(keyframe)} ends before it starts")
    return first_s, last_s
