"""Conversations, as LLaVA, LLaMA-Factory and the trainers of language models keep them, become questions with answers.

Each question becomes a sample of its own, without the turns before it. EVUD's authors put the turns about a
clip into random order, so that none of theirs leans on another; and with them in the prompt, the right
answers to the same clip's other questions would stand there for the policy to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo.data.fields import (
    ANSWER_WITH_A_SPAN,
    LETTERED,
    LETTERS,
    Record,
    as_options,
    as_seconds,
    as_text,
    check_bounds,
    get_objects,
    get_rate,
    get_text,
    is_number,
    shown,
    span_answer,
    without,
    without_letters,
    written_out,
)
from grpo.data.readers.video_r1 import TASK_OF_TYPE
from grpo.data.records import Place
from grpo.groups import Sample, Task, main_index
from grpo.media.clip import ClipSource
from grpo.media.places import PLACE, kind_of
from rewards.parsing import ANSWER, only_block, read_letter, read_number

MEDIA = re.compile(r"<(?:video|image)>\s*")
"""A token that marks where in a question its media stand. A single clip comes first in our prompts."""
SPEECH = re.compile(r"<(?:speech|audio)>\s*")
"""A token that marks where the sound would go, which no model here hears."""
INSTRUCTION = re.compile(
    r"\s*(?=.*\b(?:answer|letter|option|choice)s?\b)(?:please|answer|respond|reply|select|choose|pick|give|provide|output"
    r"|return|write|state|only|just|use|your|the answer|(?:the )?best)\b",
    re.IGNORECASE,
)
"""A line behind the options that says how to answer, which our prompts say themselves."""
IN_LINE = re.compile(r"(?:^|\s)\(?([A-Z])[.:)]\)?\s+")
"""The letter of an option in the middle of a line."""
REPLIED: Record = {"problem_type": "free-form"}
"""The kind of question whose answer is a reply of a conversation: a choice if it names an option, else open."""
TARGET = "target"
"""The column with a reply as it stands, which `loss.type=nll` trains on."""
PATH_KEYS = ("video", "image", "path", "url")
"""The keys under which the path of a medium may be, if it is an object."""
BOUNDS = ("video_start", "video_end")
SETTINGS = (
    *BOUNDS, "fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "resized_height",
    "resized_width",
)  # fmt: skip
"""The settings of a single medium, as qwen-vl-utils names them."""


@dataclass(frozen=True, slots=True)
class Tags:
    """The names of a turn's parts and of those who speak."""

    role: str = "from"
    content: str = "value"
    user: str = "human"
    assistant: str = "gpt"
    system: str = "system"


OPENAI = Tags(role="role", content="content", user="user", assistant="assistant")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a format's columns and of the parts of its turns."""

    turns: tuple[str, ...]
    """The columns that may hold the conversation, or a question as a text; the first that is there counts."""
    answers: tuple[str, ...] = ()
    """The columns that may hold the right answer; in a record without one, replies are the answers."""
    videos: str = "videos"
    images: str = "images"
    audios: str = "audios"
    system: str = "system"
    tags: Tags | None = None
    """None: the usual names, by what is there."""


def samples_of(
    record: Record,
    place: Place,
    layout: Layout,
    *,
    name: str | None = None,
    bounds_s: tuple[float, float | None] = (0.0, None),
) -> Iterator[Sample]:
    """A sample for each question; with several, their names get the number of theirs.

    name: None for records that have no names of their own; theirs is their number.
    """
    if record.get(layout.audios):
        raise ValueError(f"{layout.audios!r} is not supported: {shown(record[layout.audios])}")
    talk = _talk(record, layout)
    media = [
        *talk.media,
        *_column(record, layout.videos, "video"),
        *_column(record, layout.images, "image"),
    ]
    clip_source = _clip_source(record, place, media, bounds_s)
    if clip_source and len(clip_source.frames) > 1:
        place.remark("several images of a question are taken as the frames of one clip")
    several = [] if clip_source else _several(place, media, bounds_s)
    if several and all(source.is_picture for source in several):
        place.remark("several images of a question are pictures of their own, unless frame_fps is set")
    if ignored := sorted({name for medium in media for name in medium.settings} - {*BOUNDS}):
        place.remark(
            f"{', '.join(ignored)} of single media are left out: the config's media.* are those of all"
        )
    # Columns with the answer are kept, since rewards that were written for another trainer are called with them.
    own = (talk.key, layout.videos, layout.images, layout.audios, layout.system)
    columns = without(record, *own, "video", "image", "frame_fps")
    system = record.get(layout.system) or talk.system
    for number, (question, answer) in enumerate(talk.pairs, start=1):
        if (num_tokens := len(MEDIA.findall(question))) not in (0, len(media)):
            raise ValueError(f"{num_tokens} media tokens in a question for {len(media)} videos or images")
        ordered = in_order(several, question)
        own_clip = ordered[main_index(ordered)] if ordered else clip_source
        asked = as_text(SPEECH.sub("", question if ordered else MEDIA.sub("", question)), "question")
        yield Sample(
            id=place.id((name or str(place.number)) + (f"#{number}" if len(talk.pairs) > 1 else "")),
            source=place.source,
            system=as_text(system, layout.system) if system else "",
            clip_source=own_clip,
            media=ordered,
            columns={TARGET: answer, **columns} if talk.is_replied else columns,
            **_posed(asked, answer, REPLIED if talk.is_replied else record, own_clip),
        )


class Medium(NamedTuple):
    """A video or an image of a record."""

    kind: str
    path: str
    settings: Mapping[str, Any]
    """What the record says of it beside its path, for qwen-vl-utils."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation as its questions with their answers, and what else its turns hold."""

    key: str
    """The column that holds it."""
    pairs: list[tuple[str, Any]]
    is_replied: bool
    """Whether the answers are replies of the conversation, not values of a column."""
    system: str
    media: list[Medium]
    """The media that are parts of turns."""


def _talk(record: Record, layout: Layout) -> Talk:
    key = next((key for key in layout.turns if record.get(key) is not None), layout.turns[-1])
    tags = layout.tags or Tags()
    if layout.answers and isinstance(record.get(key), str):
        turns: list[Record] = [{tags.role: tags.user, tags.content: record[key]}]
    else:
        turns = get_objects(record, key)
        tags = layout.tags or (OPENAI if turns and OPENAI.role in turns[0] else tags)
    system = ""
    if turns and turns[0].get(tags.role) == tags.system:
        system, turns = turns[0].get(tags.content) or "", turns[1:]
    media: list[Medium] = []
    said = [(turn.get(tags.role), _said(turn, tags, media)) for turn in turns]
    answer = _answer(record, layout)
    if answer is not None:
        questions = [text for role, text in said if role == tags.user]
        if len(questions) != 1:
            raise ValueError(f"a record with an answer has one question, not {len(questions)}")
        return Talk(key, [(questions[0], answer)], False, system, media)
    if layout.answers and len(said) == 1:
        raise ValueError(f"there is no answer: no reply, and none of {', '.join(layout.answers)}")
    return Talk(key, _pairs(said, tags), True, system, media)


def _pairs(said: Sequence[tuple[Any, str]], tags: Tags) -> list[tuple[str, Any]]:
    """The turns as pairs of question and reply; any other order is refused."""
    if not said or len(said) % 2:
        raise ValueError(f"a conversation is pairs of question and reply, not {len(said)} turns")
    for number, (role, _) in enumerate(said, start=1):
        wanted = tags.user if number % 2 else tags.assistant
        if role != wanted:
            raise ValueError(f"turn {number} must be from {wanted!r}, not {shown(role)}")
    texts = [text for _, text in said]
    return [*zip(texts[::2], texts[1::2], strict=True)]


def _said(turn: Record, tags: Tags, media: list[Medium]) -> str:
    """The text of a turn. One that is in parts has a token for each video and image, which go into media."""
    if type(turn.get(tags.content)) is not list:
        return get_text(turn, tags.content)
    text = ""
    for part in get_objects(turn, tags.content):
        kind = get_text(part, "type")
        medium = kind.removesuffix("_url")
        if medium not in ("video", "image", "text"):
            raise ValueError(f"a part of the type {kind!r} is not supported")
        if medium == "text":
            text += get_text(part, "text")
            continue
        text += f"<{medium}>"
        if part.get(kind) is not None:
            media.append(_medium(medium, part[kind], kind, beside=part))
    return text


def _medium(kind: str, value: Any, key: str, beside: Record | None = None) -> Medium:
    """A video or an image that is given by its path, or as an object with settings, which may also stand beside it."""
    given = value if type(value) is dict else {"path": value}
    path = as_text(next(filter(None, map(given.get, PATH_KEYS)), None), key)
    stated = {**(beside or {}), **given}
    return Medium(kind, path, {name: stated[name] for name in SETTINGS if stated.get(name) is not None})


def _answer(record: Record, layout: Layout) -> Any:
    """The right answer that a column holds; None without one."""
    for key in layout.answers:
        value: Any = record
        for part in key.split("."):
            value = value.get(part) if type(value) is dict else None
        if value is not None:
            return value
    return None


def _clip_source(
    record: Record, place: Place, media: Sequence[Medium], bounds_s: tuple[float, float | None]
) -> ClipSource | None:
    """The one video or picture of a conversation, or its images, if they are the frames of a clip; else None."""
    rate = get_rate(record, "frame_fps")
    kinds = {each.kind for each in media}
    if not media or (len(media) > 1 and (kinds != {"image"} or rate is None)):
        return None
    paths = [place.media(each.path) for each in media]
    video, frames = (paths[0], ()) if kinds == {"video"} else (None, tuple(paths))
    start_s, end_s = _bounds(media[0].settings) or bounds_s
    return ClipSource(video=video, frames=frames, frame_fps=rate, start_s=start_s, end_s=end_s)


def _several(place: Place, media: Sequence[Medium], bounds_s: tuple[float, float | None]) -> list[ClipSource]:
    """The several media of a conversation; bounds_s are those of a video that is the only one."""
    is_only = sum(medium.kind == "video" for medium in media) == 1
    return [_source(place.media(each.path), each, bounds_s if is_only else (0.0, None)) for each in media]


def _source(path: str, medium: Medium, bounds_s: tuple[float, float | None]) -> ClipSource:
    if medium.kind == "image":
        return ClipSource(frames=(path,))
    start_s, end_s = _bounds(medium.settings) or bounds_s
    return ClipSource(video=path, start_s=start_s, end_s=end_s)


def in_order(media: Sequence[ClipSource], text: str) -> tuple[ClipSource, ...]:
    """The media as a text marks their places: each mark means the next one of its kind. Without marks, as they are."""
    marks = PLACE.findall(text)
    if not media or not marks:
        return tuple(media)
    kinds = [kind_of(source) for source in media]
    if sorted(marks) != sorted(kinds):
        raise ValueError(f"a question marks {', '.join(marks)} for its media {', '.join(kinds)}")
    waiting = {kind: iter([s for s, own in zip(media, kinds, strict=True) if own == kind]) for kind in kinds}
    return tuple(next(waiting[mark]) for mark in marks)


def _bounds(settings: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """The part of a video that qwen-vl-utils would read; None for all of it."""
    start_s, end_s = (as_seconds(settings[key], key) if key in settings else None for key in BOUNDS)
    if start_s is None and end_s is None:
        return None
    if end_s is not None:
        check_bounds(start_s or 0.0, end_s, keys=BOUNDS)
    return start_s or 0.0, end_s


def _column(record: Record, key: str, medium: str) -> list[Medium]:
    """The media in a column that lists some, and in the one that is named after the medium."""
    listed, one = record.get(key) or [], record.get(medium)
    if type(listed) is not list:
        raise ValueError(f"{key!r} must be a list of paths, not {shown(listed)}")
    alone = one if type(one) is list else [] if one is None else [one]
    return [_medium(medium, value, key) for value in listed] + [
        _medium(medium, value, medium) for value in alone
    ]


def _posed(question: str, given: Any, record: Record, clip_source: ClipSource | None) -> dict[str, Any]:
    """The question as one whose answer can be compared: a choice, a number, a span, or words."""
    answer = _answer_text(given)
    asked, options = split_options(question)
    if record.get("options"):
        options = without_letters(as_options(record["options"]))
    if letter := read_letter(answer, options) if options else None:
        return {"question": asked, "answer": letter, "task": "choice", "options": options}
    task = _task(record.get("problem_type"), given, answer)
    if task == "choice":
        raise ValueError(f"answer {shown(answer)} is not one of the options {shown(list(options))}")
    if task == "span":
        answer = span_answer(answer, clip_source)
        return {"question": f"{question.strip()} {ANSWER_WITH_A_SPAN}", "answer": answer, "task": "span"}
    return {"question": question.strip(), "answer": answer, "task": task}


def _task(problem_type: object, given: Any, answer: str) -> Task:
    """The task by the type that a record states, as Video-R1's do, or else by the form of the answer."""
    if isinstance(problem_type, str):
        return TASK_OF_TYPE.get(problem_type, "open")
    return "span" if _is_span(given) else "number" if read_number(answer) is not None else "open"


def _is_span(given: Any) -> bool:
    return type(given) is list and len(given) == 2 and all(map(is_number, given))


def _answer_text(given: Any) -> str:
    """The answer without its tags; a number is written out, and of a turn it is the content."""
    if type(given) is list and len(given) == 1 and type(given[0]) is dict:
        given = given[0].get(OPENAI.content)
    if is_number(given):
        return written_out(given)
    if _is_span(given):
        return shown(given)
    text = as_text(given, "answer")
    return (only_block(text, ANSWER) or text).strip()


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """A question and the options that its last lines list as A, B, ...; without two of these, as it is.

    One line may list them all. Lines behind the options that say how to answer are left out.
    """
    lines = question.strip().splitlines()
    while lines and (not lines[-1].strip() or INSTRUCTION.match(lines[-1])):
        lines.pop()
    listed = [LETTERED.fullmatch(line.strip()) for line in lines]
    for first in range(len(lines) - 2, 0, -1):
        found = [match for match, letter in zip(listed[first:], LETTERS, strict=False)
                 if match and match[1] == letter and match[2].strip()]  # fmt: skip
        if len(found) == len(lines) - first:
            return "\n".join(lines[:first]).strip(), tuple(match[2].strip() for match in found)
    text, *rest = IN_LINE.split(lines[-1]) if lines else [""]
    letters, options = rest[::2], tuple(option.strip() for option in rest[1::2])
    asked = "\n".join([*lines[:-1], text]).strip()
    if len(letters) > 1 and letters == [*LETTERS[: len(letters)]] and all(options) and asked:
        return asked, options
    return question, ()
