"""The text of a prompt's user turn, which is the same for all families."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict

from grpo.groups import Sample

INSTRUCTIONS = {
    "think": "First reason step by step inside <think> </think>.",
    "keyframes": "Then list the moments of the video that show the answer inside <keyframes> </keyframes>: "
    "seconds from its start, as numbers or spans such as 3.0-4.5, separated by commas.",
    "answer": "Finally give {what} inside <answer> </answer>.",
}
ANSWER_WHAT = {"choice": "only the letter of the right option", "number": "only the number"}


class Wording(TypedDict):
    """The settings of a prompt's text."""

    template: str
    option: str
    tags: Sequence[str]
    system: NotRequired[str | None]
    user: NotRequired[Callable[[Sample], str] | None]
    """The whole user's turn after the clip, in the place of the template: the official prompt of a benchmark."""


def user_text(sample: Sample, *, template: str, option: str, tags: Sequence[str]) -> str:
    """Return the user's turn: question, options and instructions for the tags. Empty parts leave no blank line."""
    lettered = zip(string.ascii_uppercase, sample.options, strict=False)
    options = "\n".join(option.format(letter=letter, text=text) for letter, text in lettered)
    instruction = " ".join(INSTRUCTIONS[tag] for tag in tags).replace(
        "{what}", ANSWER_WHAT.get(sample.task, "the answer")
    )
    text = template.format(question=sample.question, options=options, instruction=instruction)
    return "\n".join(line for line in text.split("\n") if line.strip())
