"""VSI-Bench: spatial questions about walks through rooms, with options or with numbers, which are graded.

A number counts as its mean relative accuracy (MRA). The official code counts a threshold as passed where the error
equals it (`<=`), the paper's formula only below it; ours is the paper's. The total is the mean over eight tasks, after
the three difficulties of relative direction were averaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import fmean

import numpy as np

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, Verdict
from grpo.benchmarks.replies import grouped, lettered
from grpo.benchmarks.rules import strict
from grpo.groups import Sample
from rewards.builtin.answers import share_of_thresholds
from rewards.builtin.matching import relative_error
from rewards.parsing import is_blank, read_number

DIRECTION = "object_rel_direction"
THRESHOLDS = np.linspace(0.5, 0.95, 10)
OPENING = "These are frames of a video."
NUMBER_ASKED = "Please answer the question using a single word or phrase."
UNITS = {"square meters": "square meters?|m²|m2", "centimeters": "centimeters?|cm", "meters": "meters?|m"}
"""The units that questions ask for, a name before the one that ends it, and how answers write them."""
LETTER_ASKED = "Answer with the option's letter from the given choices directly."


def prompt(sample: Sample) -> str:
    """The default prompt of `vsibench.yaml`; its variants for Gemini and GPT-4V ask for numbers in other words."""
    if sample.task != "choice":
        return "\n".join([OPENING, sample.question, NUMBER_ASKED])
    options = lettered(sample, "{letter}. {text}")
    return "\n".join([OPENING, sample.question, "Options:", *options, LETTER_ASKED])


def ours(sample: Sample, text: str) -> Verdict | None:
    """A letter as anywhere; a number by the paper's MRA, with or without the unit that was asked for."""
    if sample.task == "choice" or is_blank(text):
        return strict(sample, text)
    got, wanted = read_number(_without_unit(sample, text)), read_number(sample.answer)
    if got is None or wanted is None:
        return None
    error = relative_error(Fraction(got), Fraction(wanted))
    return Verdict.graded(share_of_thresholds(error), str(got))


def _without_unit(sample: Sample, text: str) -> str:
    """The text without the unit at its end, if it is the one that the question asks in."""
    for unit, written in UNITS.items():
        if unit in sample.question:
            return re.sub(rf"(?<=[\d ])(?:{written})\.?$", "", text.strip())
    return text


def official(sample: Sample, text: str) -> float:
    """The first word up to a space, without its full stops: the letter up to case, or a number for Python's `float`.

    Known mistakes: `The answer is B` and `(B)` are wrong, and so is `B` with a line break behind it; `3m` is no number.
    The code divides by a right 0; here it is right where it is answered.
    """
    word = text.split(" ")[0].rstrip(".").strip()
    if sample.task == "choice":
        return float(word.lower() == sample.answer.lower())
    try:
        got, wanted = float(word), float(sample.answer)
    except ValueError:
        return 0.0
    if wanted == 0:
        return float(got == 0)
    return float((abs(got - wanted) / wanted <= 1 - THRESHOLDS).mean())


def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """The mean of each task in percent, by the official rule, and `overall`, the mean of these means."""
    tasks: dict[str, list[float]] = {}
    for kind, each in grouped(scored, lambda sample: sample.columns.get("question_type")).items():
        task = DIRECTION if kind.startswith(DIRECTION) else kind
        tasks.setdefault(task, []).append(fmean(answer.official or 0.0 for answer in each))
    means = {task: 100 * fmean(each) for task, each in tasks.items()}
    return {**means, "overall": fmean(means.values()) if means else 0.0}


VSI_BENCH = Benchmark(
    name="vsi_bench",
    reader="vsi_bench",
    notes="Published: Video-R1-7B 35.8 with 32 frames (its README).",
    sources=("https://arxiv.org/abs/2412.14171", "https://github.com/vision-x-nyu/thinking-in-space"),
    prompt=prompt,
    ours=ours,
    official=official,
    groups=("question_type", "dataset"),
    summary=summary,
)
