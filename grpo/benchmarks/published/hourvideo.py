"""HourVideo's development set: 50 videos of 20 to 120 minutes, 1,182 questions with five options and published answers.

The authors ask all questions of a task about a video at once, but for those about the future and those of pictures;
here each is asked alone, so numbers are near theirs and not the same. Their instructions lie in the data set, behind a
form, and could not be read: ours stands behind the question. Their code takes the first character of the answer if it
is a letter, and counts a task whose reply it can't read as wrong. Questions whose options are pictures are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.prompts import DIRECT
from grpo.benchmarks.replies import grouped, lettered, percent
from grpo.groups import Sample


def prompt(sample: Sample) -> str:
    """The question as `get_mcqs_hv_eval_protocol` writes it, with the options listed by their letters: the form of the
    record's own list, `mcq_test`, could not be verified, and options may have been moved."""
    options = "\n".join(lettered(sample, "{letter}. {text}"))
    return f"Question: {sample.question}\nAnswers:\n{options}\n{DIRECT['choice']}"


def official(sample: Sample, text: str) -> float:
    """The first character, if it is a letter: `extract_first_letter`. Known mistake: `The answer is B` is read as T."""
    found = re.match("[A-Za-z]", text)
    return float(found is not None and found[0] == sample.answer)


def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """The mean of the tasks' accuracy in percent, by the official rule."""
    tasks = grouped(scored, lambda sample: sample.columns["task"]).values()
    means = [percent(each.official or 0.0 for each in task) for task in tasks]
    return {"mean_of_tasks": fmean(means)} if means else {}


HOURVIDEO = Benchmark(
    name="hourvideo",
    reader="hourvideo",
    notes="Published, on all 12,976 questions: people 85.0, Gemini 1.5 Pro 37.3, blind GPT-4 19.6.",
    sources=("https://arxiv.org/abs/2411.04998", "https://github.com/keshik6/HourVideo"),
    prompt=prompt,
    official=official,
    groups=("task",),
    summary=summary,
)
