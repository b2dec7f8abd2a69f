"""EgoTempo: 500 questions about first-person clips in ten types, with open answers for a judge, or as choices.

The authors' notebook extracts 32 frames of each clip, evenly spread from first to last, but sends only the first one to
its model. It stops at the judgements: that the accuracy is the share of `correct` is the usual reading, not a published
formula. Judgements that can't be read are left out of its file, and so of the mean.

The questions as choices are our own: three answers of other questions of the same type, drawn by the question's id. The
options behind published numbers of that kind (TGPO, arXiv 2603.27184) are not public, so they don't compare.
"""

from __future__ import annotations

import random
from dataclasses import replace

from grpo.benchmarks.benchmark import Benchmark, Judging
from grpo.data.fields import LETTERS
from grpo.groups import Sample
from rewards.parsing import normalise

SOURCES = ("https://arxiv.org/abs/2503.13646", "https://github.com/google-research-datasets/egotempo")
PROMPT = (
    "These are frames from a video that I want to upload. Use the visual cues to answer the question: {question}. "
    "You need to answer the question in any case and not demand additional context information. Note: All actions "
    "mentioned refer to the person recording the video."
)
NUM_WRONG = 3


def as_choices(samples: list[Sample]) -> list[Sample]:
    """The questions with four options: the answer, and three of other questions of the type."""
    return [_choice(sample, samples) for sample in samples]


def _choice(sample: Sample, samples: list[Sample]) -> Sample:
    kind = sample.columns.get("question_type")
    others = {
        normalise(each.answer): each.answer for each in samples if each.columns.get("question_type") == kind
    }
    others.pop(normalise(sample.answer), None)
    if len(others) < NUM_WRONG:
        raise ValueError(f"{sample.source}: only {len(others)} other answers of the type {kind!r}")
    drawn = random.Random(sample.id)
    options = [sample.answer, *drawn.sample(sorted(others.values()), NUM_WRONG)]
    drawn.shuffle(options)
    letter = LETTERS[options.index(sample.answer)]
    return replace(sample, id=f"{sample.id}#choice", task="choice", options=tuple(options), answer=letter)


EGOTEMPO = Benchmark(
    name="egotempo",
    reader="egotempo",
    notes="The official judge is gemini-1.5-flash. Published: people 63.2, GPT-4o 42.0.",
    sources=SOURCES,
    prompt=lambda sample: PROMPT.format(question=sample.question),
    judge=Judging(prompt="egotempo", official=lambda sample, text, judged: judged),
    groups=("question_type",),
)
EGOTEMPO_CHOICES = Benchmark(
    name="egotempo_choices",
    reader="egotempo",
    sources=SOURCES,
    prepare=as_choices,
    groups=("question_type",),
)
