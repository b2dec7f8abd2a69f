"""EgoThink: pictures in first person, twelve tasks, open answers that a judge marks with 0, 0.5 or 1.

Each task is a file of its own; the published average is the mean of the twelve tasks' means (that of GPT-4V in the
README, 65.5, is the mean of its row). The official code drops an answer without a rating after nine requests, and takes
any number in double brackets. Every model has its own prompt there: this one is that of gpt_eval.py (fbafe8f), without
the longer one that some models get for the two tasks of planning. It shows the picture behind the text, here before it,
and cuts a reply that repeats the prompt's last words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from grpo.benchmarks.benchmark import Benchmark, Judging, ScoredAnswer
from grpo.benchmarks.replies import grouped, percent
from grpo.groups import Sample

SYSTEM = "You are a helpful assistant."
PROMPT = "Please let your answer be as short as possible. Question: {question} Short answer:"
ECHO = "Short Answer: "


def prediction(_: Sample, text: str) -> str | None:
    """What the judge sees: of a reply that has `Short Answer: ` in it, what stands between this and the next one."""
    said = text.split(ECHO)[1] if ECHO in text else text
    return said.strip() or None


def with_task(samples: list[Sample]) -> list[Sample]:
    """The questions with the name of their file's folder as the column `task`."""
    return [replace(each, columns={**each.columns, "task": each.id.split("/")[0]}) for each in samples]


def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """The official average in percent: the mean of the tasks' means, over the answers that got a rating."""
    rated = [each for each in scored if each.official is not None]
    tasks = grouped(rated, lambda sample: sample.columns["task"])
    means = [percent(each.official or 0.0 for each in task) for task in tasks.values()]
    return {"average_of_tasks": fmean(means)} if means else {}


EGOTHINK = Benchmark(
    name="egothink",
    reader="egothink",
    files="**/annotations.json",
    notes="The official judge is gpt-4o, earlier gpt-4. Published: GPT-4V 65.5, EgoGPT-7B 61.7.",
    sources=("https://arxiv.org/abs/2311.15596", "https://github.com/AdaCheng/EgoThink"),
    prepare=with_task,
    prompt=lambda sample: PROMPT.format(question=sample.question),
    system=SYSTEM,
    judge=Judging(prompt="egothink", prediction=prediction, official=lambda sample, text, judged: judged),
    groups=("task",),
    summary=summary,
)
