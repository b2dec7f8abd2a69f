"""The prompt for direct answers, where a benchmark has no official one, and the digest that tells prompts apart."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable
from typing import TypedDict

from grpo.benchmarks.benchmark import Benchmark
from grpo.groups import Sample

DIRECT = {
    "choice": "Answer with only the letter of the right option.",
    "number": "Answer with only the number.",
    "regression": "Answer with only the number.",
    "span": "Answer with only the start and the end in seconds, such as 3.0-4.5.",
}


SPAN_OF_SEVERAL = (
    "Answer with only the number of the video and the start and the end in it in seconds, such as 2: 3.0-4.5."
)


def direct(sample: Sample) -> str:
    """The user's turn that asks for the answer alone, without reasoning."""
    options = [
        f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, sample.options, strict=False)
    ]
    asked = DIRECT.get(sample.task, "Answer in a few words.")
    if sample.task == "span" and sample.num_videos > 1:
        asked = SPAN_OF_SEVERAL
    return "\n".join([sample.question, *options, asked])


class Official(TypedDict):
    """What an official prompt says in the place of a training prompt's wording."""

    tags: tuple[str, ...]
    system: str | None
    user: Callable[[Sample], str]


def official_wording(benchmark: Benchmark) -> Official:
    """A benchmark's own prompt, or the one for direct answers where it has none."""
    return {"tags": (), "system": benchmark.system, "user": benchmark.prompt or direct}


def digest(text: str) -> str:
    """The first 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
