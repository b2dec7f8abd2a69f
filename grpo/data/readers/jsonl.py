"""The native record: JSON Lines, one question per line.

    {"id": "k-0017", "video": "clips/k-0017.mp4", "start_s": 12.0, "end_s": 42.0,
     "question": "What did I pick up?", "options": ["a cup", "a knife"], "answer": "B", "task": "choice",
     "keyframes_s": [[18.0, 19.5], 30.0]}

In place of `video`: `"frames": [paths]`, or the path of their folder, with `"frame_fps"` or `"frame_times_s"`; or
`"image"`, a single picture; or nothing. `"system"` is a system prompt of the record's own. Paths start from the media
root. All times count from the start of the file, or are on the clock of `frame_times_s`, also those of an answer of the
task "span" (`18.0-19.5`); `keyframes_s` holds spans or single moments. A sample's times, its answer's too, count from
its clip's start. Other keys are kept as columns for rewards. Nothing is guessed or dropped: a record that is not right
raises with file and line.

A question about several media lists them, each with the keys that a record of one has:

    {"id": "k-0018", "media": [{"video": "k.mp4", "start_s": 3.0, "end_s": 9.0}, {"image": "now.jpg"}],
     "question": "<video> I did this, and now I see <image> What comes next?", ...}

`<video>` (also for `frames`) and `<image>` say in the question or in options where each of them stands; without any,
they stand before the question. A time belongs to the first video, but for `keyframes_s` in another one's own object,
and an answer of the task "span" that has the number of its video in front (`2: 18.0-19.5`).
With `"frame_s": 9.0` in place of bounds, a video is a picture: its frame at that time.

`"streams": {"sensor": "k.sensor.npz"}` are files of sensors, motion or actions (`codec/streams.py`), each by the name
of the codec that reads it: `<sensor>` in the question, an option or the column `target` stands for its codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from grpo.codec.spec import NAME as CODEC_NAME
from grpo.data.fields import (
    TASKS,
    Record,
    Span,
    as_options,
    as_seconds,
    as_text,
    check_bounds,
    check_letter,
    get_objects,
    get_rate,
    get_text,
    has,
    holds_number,
    is_number,
    on_clips_clock,
    shown,
    span_answer,
    without,
    written_out,
)
from grpo.data.records import Place, Reader
from grpo.groups import MAX_MEDIA, Sample, main_index
from grpo.media.clip import ClipSource
from grpo.media.places import Kind, check_places, kind_of

MEDIA_KEYS = ("video", "frames", "image", "images")
FRAME_KEYS = ("frame_fps", "frame_times_s")
TIME_KEYS = ("start_s", "end_s", "frame_s")
OWN_KEYS = (
    "id", "question", "options", "answer", "task", "system", "keyframes_s", "media", "streams", *MEDIA_KEYS,
    *FRAME_KEYS, *TIME_KEYS,
)  # fmt: skip
CLIP_KEYS = ("start_s", "end_s", "keyframes_s")
MEDIUM_KEYS = ("video", "frames", "image", *FRAME_KEYS, *TIME_KEYS, "keyframes_s")
"""The keys of one of several media."""


def translate(record: Record, place: Place) -> Iterator[Sample]:
    task = get_text(record, "task")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    choices = _options(record, task)
    media = _listed(record, place) if record.get("media") is not None else []
    sources = tuple(source for source, _ in media)
    clip_source = sources[main_index(sources)] if media else _clip_source(record, place)
    if media:
        check_places("\n".join((get_text(record, "question"), *choices)), [*map(kind_of, sources)])
    yield Sample(
        id=get_text(record, "id"),
        question=get_text(record, "question"),
        answer=_answer(record, task, choices, clip_source, sources),
        task=task,  # pyright: ignore[reportArgumentType] (it is one of TASKS)
        source=place.source,
        options=choices,
        system=get_text(record, "system") if record.get("system") is not None else "",
        clip_source=clip_source,
        media=sources,
        **_key_moments(record, clip_source, media),
        streams=_streams(record, place),
        columns=without(record, *OWN_KEYS),
    )


read_jsonl = Reader(translate=translate, is_like=has("question", "answer", "task"))


def _streams(record: Record, place: Place) -> dict[str, str]:
    given = record.get("streams") or {}
    if type(given) is not dict or not all(CODEC_NAME.fullmatch(name) for name in given):
        raise ValueError(f"'streams' must have a file for each codec's name, not {shown(given)}")
    if marks := given.keys() & get_args(Kind):
        raise ValueError(
            f"'streams': <{min(marks)}> stands for what is shown, so that no stream has that name"
        )
    return {name: place.media(as_text(path, "streams")) for name, path in given.items()}


def _options(record: Record, task: str) -> tuple[str, ...]:
    given = record.get("options")
    if task != "choice":
        if given:
            raise ValueError(f"'options' belong to the task 'choice', not {task!r}")
        return ()
    texts = as_options(given)
    for choice in texts:
        if [other.strip() for other in texts].count(choice.strip()) > 1:
            raise ValueError(f"option {choice!r} is there twice")
    return texts


def _answer(
    record: Record,
    task: str,
    choices: tuple[str, ...],
    clip_source: ClipSource | None,
    sources: Sequence[ClipSource],
) -> str:
    answer = record.get("answer")
    if task in ("number", "regression") and is_number(answer):
        return written_out(answer)
    if answer is None:
        raise ValueError("'answer' is missing")
    if task == "span":
        return span_answer(answer, clip_source, [each for each in sources if not each.is_picture])
    given = as_text(answer, "answer")
    if task == "choice":
        return check_letter(given, len(choices))
    if task in ("number", "regression") and not holds_number(given):
        raise ValueError(f"'answer' must be a number for the task {task!r}, not {shown(given)}")
    return given


def _clip_source(record: Record, place: Place) -> ClipSource | None:
    whole = _media(record, place)
    if whole is None:
        for key in CLIP_KEYS:
            if record.get(key) is not None:
                raise ValueError(f"{key!r} without a 'video' or 'frames'")
        return None
    start_s, end_s = _clip_bounds(record, whole)
    return replace(whole, start_s=start_s, end_s=end_s)


def _media(record: Record, place: Place) -> ClipSource | None:
    """The whole of the record's video or images; None for a question about text alone."""
    given = [key for key in MEDIA_KEYS if record.get(key) is not None]
    if len(given) > 1:
        raise ValueError(
            f"{given[0]!r} and {given[1]!r}: a question about several has a list of them, 'media'"
        )
    if given != ["frames"]:
        for key in FRAME_KEYS:
            if record.get(key) is not None:
                raise ValueError(f"{key!r} without 'frames'")
    if record.get("frame_s") is not None and given != ["video"]:
        raise ValueError("'frame_s' without a 'video'")
    if given == ["video"]:
        return ClipSource(video=place.media(get_text(record, "video")))
    if given == ["image"]:
        return ClipSource(frames=(place.media(get_text(record, "image")),))
    if given == ["images"]:
        images = place.images(record["images"], "images")
        if len(images) > 1:
            raise ValueError(
                "several 'images': those of one clip are its 'frames', and several pictures its 'media'"
            )
        return ClipSource(frames=images)
    return _frames(record, place) if given else None


def _listed(record: Record, place: Place) -> list[tuple[ClipSource, tuple[Span, ...]]]:
    """The several media of a record, each with its key moments."""
    for key in (*MEDIA_KEYS, *FRAME_KEYS, *TIME_KEYS):
        if record.get(key) is not None:
            raise ValueError(f"{key!r} beside 'media': it belongs into the object of one of these")
    entries = get_objects(record, "media")
    if not 1 <= len(entries) <= MAX_MEDIA:
        raise ValueError(f"'media' must list 1 to {MAX_MEDIA} videos or images, not {len(entries)}")
    return [_medium(entry, number, place) for number, entry in enumerate(entries, start=1)]


def _medium(entry: Record, number: int, place: Place) -> tuple[ClipSource, tuple[Span, ...]]:
    try:
        if unknown := [key for key in entry if key not in MEDIUM_KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r}; there are {', '.join(MEDIUM_KEYS)}")
        source = _clip_source(entry, place)
        if source is None:
            raise ValueError("none of 'video', 'frames', 'image'")
        if source.is_picture and entry.get("frames") is not None:
            raise ValueError(f"'frames' without {' or '.join(map(repr, FRAME_KEYS))}")
        for key in CLIP_KEYS if source.is_picture else ():
            if entry.get(key) is not None:
                raise ValueError(f"{key!r}: an image is shown at no time")
        return source, _keyframes(entry, source)
    except ValueError as error:
        raise ValueError(f"'media' {number}: {error}") from None


def _key_moments(
    record: Record, clip_source: ClipSource | None, media: Sequence[tuple[ClipSource, tuple[Span, ...]]]
) -> dict[str, Any]:
    """The key moments of the first video, and of those after it."""
    own = _keyframes(record, clip_source)
    of_videos = [spans for source, spans in media if not source.is_picture]
    first, others = (of_videos[0], of_videos[1:]) if of_videos else ((), [])
    if own and first:
        raise ValueError("'keyframes_s' beside 'media' and in it: they are of the same video")
    return {"keyframes_s": own or first, "other_keyframes_s": tuple(others)}


def _frames(record: Record, place: Place) -> ClipSource:
    is_folder = isinstance(record["frames"], str)
    frames = place.images([record["frames"]] if is_folder else record["frames"], "frames")
    times = record.get("frame_times_s")
    if times is None:
        return ClipSource(frames=frames, frame_fps=get_rate(record, "frame_fps"))
    if record.get("frame_fps") is not None:
        raise ValueError("'frame_fps' and 'frame_times_s': give one of them")
    if type(times) is not list or not times:
        raise ValueError(f"'frame_times_s' must be a list of times, not {shown(times)}")
    times_s = tuple(as_seconds(time, "frame_times_s") for time in times)
    if not is_folder and len(times_s) != len(frames):
        raise ValueError(f"'frame_times_s': {len(times_s)} times for {len(frames)} frames")
    if any(later <= earlier for earlier, later in pairwise(times_s)):
        raise ValueError(f"'frame_times_s' must ascend: {shown(times)}")
    return ClipSource(frames=frames, frame_times_s=times_s)


def _clip_bounds(record: Record, whole: ClipSource) -> tuple[float, float | None]:
    """The clip's bounds in seconds of the file, or on the clock of the frames' own times, from the first of these.

    Both are the time of a single frame, `frame_s`.
    """
    if record.get("frame_s") is not None:
        for key in CLIP_KEYS:
            if record.get(key) is not None:
                raise ValueError(f"{key!r} beside 'frame_s': a single frame is shown at no time")
        at_s = as_seconds(record["frame_s"], "frame_s")
        return at_s, at_s
    first_s = whole.frame_times_s[0] if whole.frame_times_s else 0.0
    start_s = first_s if record.get("start_s") is None else as_seconds(record["start_s"], "start_s")
    if record.get("end_s") is None:
        return start_s, None
    end_s = as_seconds(record["end_s"], "end_s")
    check_bounds(start_s, end_s, keys=("start_s", "end_s"))
    return start_s, end_s


def _keyframes(record: Record, clip_source: ClipSource | None) -> tuple[Span, ...]:
    """The key moments as spans in seconds from the clip's start."""
    keyframes = record.get("keyframes_s")
    if keyframes is None:
        return ()
    if type(keyframes) is not list:
        raise ValueError(f"'keyframes_s' must be a list of moments or spans, not {shown(keyframes)}")
    return on_clips_clock([_span(keyframe) for keyframe in keyframes], clip_source, key="keyframes_s")


def _span(keyframe: object) -> Span:
    ends = keyframe if isinstance(keyframe, list) else [keyframe, keyframe]
    if len(ends) != 2:
        raise ValueError(f"'keyframes_s': a span is [start, end], not {shown(keyframe)}")
    first_s, last_s = (as_seconds(end, "keyframes_s") for end in ends)
    if last_s < first_s:
        raise ValueError(f"'keyframes_s': {shown(keyframe)} ends before it starts")
    return first_s, last_s
