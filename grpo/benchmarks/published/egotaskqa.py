"""EgoTaskQA's test questions as a choice, in lmms-eval's words and by its rule.

The authors' own setting, a classifier over all answers of the training set, has no counterpart for a model that writes.
"""

from __future__ import annotations

import re

from grpo.benchmarks.benchmark import Benchmark
from grpo.benchmarks.replies import lettered
from grpo.data.fields import LETTERS
from grpo.groups import Sample

ASKED = (
    "Answer with the option's letter from the given choices directly and only give the best option. The best answer "
    "is: "
)


def prompt(sample: Sample) -> str:
    opening = "Select the best answer to the following multiple-choice question based on the video."
    return "\n".join(
        [opening, sample.question, "Options:", *lettered(sample, "({letter}) {text}"), "", ASKED]
    )


def official(sample: Sample, text: str) -> float:
    """The first capital A to E of the reply, without the word "answer"; if there is none among the options, the first
    option whose text is in it. Known mistake: `A knife, so C` is A."""
    text = text.replace("answer", "").replace("Answer", "")
    letters = LETTERS[: len(sample.options)]
    found = re.search("[A-E]", text)
    if found and found[0] in letters:
        return float(found[0] == sample.answer)
    named = (
        letter
        for letter, option in zip(letters, sample.options, strict=True)
        if option.strip().strip(".").lower() in text.lower()
    )
    return float(next(named, "") == sample.answer)


EGOTASKQA = Benchmark(
    name="egotaskqa",
    reader="egotaskqa",
    sources=(
        "https://arxiv.org/abs/2210.03929",
        "https://github.com/Buzz-Beater/EgoTaskQA",
        "https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/egotaskqa/utils.py",
    ),
    prompt=prompt,
    official=official,
)
