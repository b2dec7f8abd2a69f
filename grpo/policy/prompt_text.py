"""The text of a prompt's user turn, which is the same for all families."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from grpo.groups import Sample
from grpo.media.places import PLACE, Kind, check_places

INSTRUCTIONS = {
    "think": "First reason step by step inside <think> </think>.",
    "keyframes": "Then list the moments of the video that show the answer inside <keyframes> </keyframes>: "
    "seconds from its start, as numbers or spans such as 3.0-4.5, separated by commas.",
    "answer": "Finally give {what} inside <answer> </answer>.",
}
SEVERAL_VIDEOS = (
    "Then list the moments of the videos that show the answer inside <keyframes> </keyframes>: "
    "seconds from a video's start, as numbers or spans such as 3.0-4.5, each behind the number of its video, as in "
    "2: 3.0-4.5, separated by commas."
)
"""The instruction for the moments where a question has several videos; `read_videos_moments` reads them."""
ANSWER_WHAT = {"choice": "only the letter of the right option", "number": "only the number"}
SPAN_OF_SEVERAL = "only the number of the video and the span in it in seconds, such as 2: 3.0-4.5,"
"""What is asked for where a span may be of any of several videos; `read_videos_span` reads it."""


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
    several = sample.num_videos > 1
    own = INSTRUCTIONS | ({"keyframes": SEVERAL_VIDEOS} if several else {})
    what = (
        SPAN_OF_SEVERAL if several and sample.task == "span" else ANSWER_WHAT.get(sample.task, "the answer")
    )
    instruction = " ".join(own[tag] for tag in tags).replace("{what}", what)
    text = template.format(question=sample.question, options=options, instruction=instruction)
    return "\n".join(line for line in text.split("\n") if line.strip())


def user_content(text: str, kinds: Sequence[Kind], *, is_placed: bool) -> list[dict[str, Any]]:
    """Return the parts of the user's turn: the media first, or, if the text may mark their places, each at its own.

    Without media, as in a question that is asked blind, the marks of their places are left out.
    """
    if is_placed and not kinds:
        text = PLACE.sub("", text)
    if not is_placed or not PLACE.search(text):
        return [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
    check_places(text, kinds)
    # With the pattern's group, text and kinds take turns.
    parts = PLACE.split(text)
    content = [
        {"type": part} if index % 2 else {"type": "text", "text": part} for index, part in enumerate(parts)
    ]
    return [part for part in content if part.get("text") != ""]
