"""Strict access to the fields of a record: what is not of the expected kind raises ValueError with the key's name.

Nothing is guessed or converted. The readers (`readers/jsonl.py` is the one to read first) are made of these:
`get_...` takes a record and a key, `as_...` a value and the key that messages call it by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeGuard, get_args

from grpo.groups import Task
from grpo.media.clip import ClipSource
from rewards.parsing import read_number, read_videos_span

Record = Mapping[str, Any]
Span = tuple[float, float]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 100_000
"""The longest text that is read: no model's context holds more, and to process megabytes takes minutes."""
TASKS: tuple[str, ...] = get_args(Task)
ANSWER_WITH_A_SPAN = "Answer with a span in seconds, such as 3.0-4.5."
"""The answer's format, which is appended to questions that ask for a time without saying it."""
LETTERED = re.compile(r"\(?([A-Z])[.:)]\)?\s*(.*)", re.DOTALL)
"""An option as data sets write it: `A. text`, `A: text`, `A) text`, `(A) text`."""


def get_text(record: Record, key: str) -> str:
    return as_text(get_value(record, key), key)


def as_text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be a text that is not empty, not {shown(value)}")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"{key!r} has {len(value):,} characters, and at most {MAX_CHARACTERS:,} are read")
    return value


def get_name(record: Record, key: str) -> str:
    """The name of a record: a text, or a whole number as one."""
    value = get_value(record, key)
    return str(value) if type(value) is int else as_text(value, key)


def get_number(record: Record, key: str) -> float:
    """The finite number, 0 or more, of a frame or of frames per second."""
    value = get_value(record, key)
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{key!r} must be a number, 0 or more, not {shown(value)}")
    return float(value)


def get_rate(record: Record, key: str) -> float | None:
    """The frames per second, above 0; None where the record has none."""
    if record.get(key) is None:
        return None
    if (fps := get_number(record, key)) == 0:
        raise ValueError(f"{key!r} must be above 0")
    return fps


@dataclass(frozen=True, slots=True)
class Has:
    """A test of a record by its keys: whether it has all of one of these sets of keys."""

    sets: tuple[tuple[str, ...], ...]

    def __call__(self, record: Record) -> bool:
        return any(not self.lacking(record, keys) for keys in self.sets)

    @staticmethod
    def lacking(record: Record, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if record.get(key) is None]


def has(*keys: str) -> Has:
    """A test for records that have all of these keys."""
    return Has((keys,))


def lists(key: str, *keys: str) -> Callable[[Record], bool]:
    """A function that tells whether a record lists objects under the first key that have all the other ones."""

    def is_like(record: Record) -> bool:
        listed = record.get(key)
        return type(listed) is list and listed != [] and type(listed[0]) is dict and has(*keys)(listed[0])

    return is_like


def written_out(value: int | float) -> str:
    """The number as `accuracy` reads it, in digits without an exponent; of what has too many, Python's text."""
    digits = format(Decimal(str(value)), "f")
    return str(value) if read_number(digits) is None else digits


def as_seconds(value: object, key: str) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{key!r} must be in seconds, 0 or more, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key!r} is too large: {shown(value)}") from None


def get_objects(record: Record, key: str) -> list[Record]:
    """The objects of a list, which may be empty."""
    value = get_value(record, key)
    if type(value) is not list or not all(type(item) is dict for item in value):
        raise ValueError(f"{key!r} must be a list of objects, not {shown(value)}")
    return value


def get_texts(record: Record, key: str) -> list[str]:
    """The texts of a list."""
    value = get_value(record, key)
    if type(value) is not list:
        raise ValueError(f"{key!r} must be a list of texts, not {shown(value)}")
    return [as_text(text, key) for text in value]


def get_value(record: Record, key: str) -> object:
    """The value of a key that must be there; a null counts as missing."""
    if record.get(key) is None:
        raise ValueError(f"{key!r} is missing")
    return record[key]


def without(record: Record, *keys: str) -> dict[str, Any]:
    """The record's other fields: a sample's columns."""
    return {key: value for key, value in record.items() if key not in keys}


def as_options(value: object, key: str = "options") -> tuple[str, ...]:
    """The texts to choose from, 2 to 26 of them."""
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"{key!r} must be a list of 2 to {len(LETTERS)} texts, not {shown(value)}")
    return tuple(as_text(option, key) for option in value)


def without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """The options in the order of the letters that their texts begin with, and without these.

    Options without any letters are left as they are.
    """
    found = [LETTERED.fullmatch(option.strip()) for option in texts]
    by_letter = {match[1]: match[2] for match in found if match and match[1] in LETTERS[: len(texts)]}
    if len(by_letter) == len(texts):
        return tuple(as_text(by_letter[letter], "options") for letter in sorted(by_letter))
    in_place = any(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False))
    if in_place or len(by_letter) > 1:
        raise ValueError(
            f"of the options only {len(by_letter)} begin with their letters: {shown(list(texts))}"
        )
    return tuple(texts)


def check_letter(answer: str, num_options: int) -> str:
    if answer not in list(LETTERS[:num_options]):
        raise ValueError(f"answer {answer!r} is not one of the options A to {LETTERS[num_options - 1]}")
    return answer


def on_clips_clock(spans_s: Iterable[Span], clip_source: ClipSource | None, *, key: str) -> tuple[Span, ...]:
    """The spans of the file's clock counted from the clip's start; each must lie inside the clip."""
    spans_s = list(spans_s)
    start_s, end_s = (clip_source.start_s, clip_source.end_s) if clip_source else (0.0, None)
    for first_s, last_s in spans_s:
        if last_s < first_s:
            raise ValueError(f"{key!r}: {first_s:g} to {last_s:g} s ends before it starts")
        if first_s < start_s or (end_s is not None and last_s > end_s):
            until = "the file's end" if end_s is None else f"{end_s:g} s"
            raise ValueError(
                f"{key!r}: {first_s:g} to {last_s:g} s lies outside the clip, {start_s:g} s to {until}"
            )
    return tuple((first_s - start_s, last_s - start_s) for first_s, last_s in spans_s)


def span_answer(
    given: object, clip_source: ClipSource | None, videos: Sequence[ClipSource | None] = ()
) -> str:
    """The span, a text or a list, in seconds from the clip's start, to the millisecond: 18.3 - 12.1 is not 6.2.

    videos: those of a question about several, where the span may have the number of its own in front (`2: 3.0-4.5`).
    """
    several = len(videos) > 1
    read = read_videos_span(given if isinstance(given, str) else shown(given), len(videos))
    if read is None or round(read[1][0], 3) == round(read[1][1], 3):
        numbered = f" or, of the second of {len(videos)} videos, 2: 3.0-4.5" if several else ""
        raise ValueError(f"'answer' must be a span in seconds, such as 3.0-4.5{numbered}, not {shown(given)}")
    number, span_s = read
    source = videos[number - 1] if several else clip_source
    ((first_s, last_s),) = on_clips_clock([span_s], source, key="answer")
    mark = f"{number}: " if number > 1 else ""
    return f"{mark}{round(first_s, 3)}-{round(last_s, 3)}"


def check_bounds(start_s: float, end_s: float, *, keys: tuple[str, str]) -> None:
    if end_s <= start_s:
        raise ValueError(f"{keys[1]!r} ({end_s:g}) must lie behind {keys[0]!r} ({start_s:g})")


def holds_number(answer: str) -> bool:
    """Whether a number may be read from an answer; a LaTeX command may stand for one (`\\pi`)."""
    return re.search(r"\d|\\[a-zA-Z]", answer) is not None


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: object) -> str:
    as_ascii = ascii(value)
    return as_ascii if len(as_ascii) <= 80 else f"{as_ascii[:77]}..."
