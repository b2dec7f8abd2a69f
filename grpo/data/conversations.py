"""Conversations as LLaVA and ShareGPT files hold them: turns, which become questions with answers.

Each question becomes a sample of its own, without the turns before it. EVUD's authors put the turns about a
clip into random order, so that none of theirs leans on another; and with them in the prompt, the right
answers to the same clip's other questions would stand there for the policy to read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.data.fields import LETTERED, LETTERS, Record, as_text, get_text, shown
from grpo.data.records import Place
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from rewards.parsing import read_letter

MEDIA = re.compile(r"<(?:video|image)>\s*")
"""A token that marks where in a question the clip stands. The clip always comes first in our prompts."""
INSTRUCTION = re.compile(
    r"\s*(?=.*\b(?:answer|letter|option|choice)s?\b)(?:please|answer|respond|reply|select|choose|pick|give|provide|output"
    r"|return|write|state|only|just|use|your|the answer|(?:the )?best)\b",
    re.IGNORECASE,
)
"""A line behind the options that says how to answer, which our prompts say themselves."""
SYSTEM = "system"
"""The column that keeps a conversation's system prompt."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tags:
    """The names of a turn's parts and of those who speak."""

    role: str = "from"
    content: str = "value"
    user: str = "human"
    assistant: str = "gpt"
    system: str = "system"


@dataclass(frozen=True, slots=True)
class Exchange:
    question: str
    reply: str


def without_system(turns: Sequence[Record], tags: Tags) -> tuple[dict[str, Any], Sequence[Record]]:
    """The system prompt that a conversation may begin with, as a column, and the turns behind it."""
    if not turns or turns[0].get(tags.role) != tags.system:
        return {}, turns
    system = turns[0].get(tags.content)
    return ({SYSTEM: system} if system else {}), turns[1:]


def said_system(path: str | os.PathLike[str], samples: list[Sample]) -> list[Sample]:
    """The samples, after it was said how many have a system prompt, which the model is not shown."""
    if number := sum(SYSTEM in sample.columns for sample in samples):
        logger.warning(
            "%s: %d of %d questions have a system prompt: kept as the column %r, not shown",
            path,
            number,
            len(samples),
            SYSTEM,
        )
    return samples


def exchanges(turns: Sequence[Record], tags: Tags) -> list[Exchange]:
    """The turns as pairs of question and reply; any other order is refused."""
    if not turns or len(turns) % 2:
        raise ValueError(f"a conversation is pairs of question and reply, not {len(turns)} turns")
    for number, turn in enumerate(turns, start=1):
        wanted = tags.user if number % 2 else tags.assistant
        if turn.get(tags.role) != wanted:
            raise ValueError(f"turn {number} must be from {wanted!r}, not {shown(turn.get(tags.role))}")
    contents = [get_text(turn, tags.content) for turn in turns]
    return [Exchange(*pair) for pair in zip(contents[::2], contents[1::2], strict=True)]


def without_media(turns: Sequence[Exchange]) -> tuple[list[Exchange], list[int]]:
    """The exchanges without their media tokens, and how many of these each question had."""
    plain = [Exchange(MEDIA.sub("", turn.question), turn.reply) for turn in turns]
    return plain, [len(MEDIA.findall(turn.question)) for turn in turns]


def samples_of(
    turns: Sequence[Exchange],
    place: Place,
    *,
    name: str,
    clip_source: ClipSource | None,
    columns: Record,
) -> Iterator[Sample]:
    """A sample for each exchange; with several, their names get the number of theirs."""
    for number, turn in enumerate(turns, start=1):
        question, choices = split_options(as_text(turn.question, "question"))
        letter = read_letter(turn.reply, choices) if choices else None
        yield Sample(
            id=place.id(name if len(turns) == 1 else f"{name}#{number}"),
            question=question if letter else turn.question.strip(),
            answer=letter or turn.reply.strip(),
            task="choice" if letter else "open",
            source=place.source,
            options=choices if letter else (),
            clip_source=clip_source,
            columns=columns,
        )


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """A question and the options that its last lines list as A, B, ...; without two of these, as it is.

    Lines behind the options that say how to answer are left out.
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
    return question, ()
