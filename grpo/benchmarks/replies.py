"""What several benchmarks share: published rules for reading a reply, means of scores, and the letter to submit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from grpo.benchmarks.benchmark import Ours, ScoredAnswer
from grpo.benchmarks.rules import answer_text, strict
from grpo.data.fields import LETTERS
from grpo.groups import Sample


def lettered(sample: Sample, form: str) -> list[str]:
    """The options, each written as `form` has it: "{letter}. {text}"."""
    return [
        form.format(letter=letter, text=text) for letter, text in zip(LETTERS, sample.options, strict=False)
    ]


def only_object(text: str) -> dict[str, Any] | None:
    """The one JSON object between the first opening and the last closing brace; None if that is none, or several."""
    try:
        value = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        return None
    return value if type(value) is dict else None


def first_letter(text: str, prefixes: Sequence[str]) -> str:
    """The letter that Video-MME's published rule reads, empty for none: the first of A to D that is left anywhere in
    the text, inside a word too, after these prefixes were cut out wherever they stand.

    From `extract_characters_regex` of https://github.com/BradyFU/Video-MME, which many harnesses took over. Known
    mistakes: `A person washes, so B` is read as A, and so is `Answer: B` where `Answer:` is no prefix.
    """
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else ""


def letter_of(scored: ScoredAnswer, ours: Ours = strict) -> str:
    """The letter that was read from an answer by our rule, empty for none; also where no right answer is published."""
    if scored.verdict is not None:
        return scored.verdict.answer
    text = answer_text(scored.answer.text, has_tags=False)
    read = ours(scored.sample, text) if text and scored.answer.finish != "failed" else None
    return read.answer if read else ""


def percent(values: Iterable[float]) -> float:
    """The mean of scores from 0 to 1, times 100; 0 of none."""
    listed = [*values]
    return 100 * fmean(listed) if listed else 0.0


def grouped(scored: Sequence[ScoredAnswer], key: Callable[[Sample], object]) -> dict[str, list[ScoredAnswer]]:
    """The answers by what their questions have under a key, in order of first appearance."""
    groups: dict[str, list[ScoredAnswer]] = {}
    for each in scored:
        groups.setdefault(str(key(each.sample)), []).append(each)
    return groups


def written(value: object) -> str:
    """A submission file's JSON."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
