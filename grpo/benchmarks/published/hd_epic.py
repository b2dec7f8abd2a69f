"""HD-EPIC's questions about one or several videos or pictures.

Prompt and rule are those of the authors' Gemini run (`models/base_model.py`, `configs/gemini/gemini_pro_final.json`).
It writes an input's name before it (`video 1: `), cuts clips at whole seconds, and lets the model write one token.
Whether the paper's total is the mean of questions or of prototypes could not be verified: its code prints each
prototype's, and no total.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.replies import grouped, lettered, percent
from grpo.data.fields import LETTERS
from grpo.data.readers.hd_epic import named_inputs
from grpo.groups import Sample

SYSTEM = (
    "You are an expert video analyzer, and your job is to answer the multiple choice question by giving only the "
    "letter identifying the answer. Do not give any other information. For example, acceptable answers are 'A' or "
    "'B' or 'C' etc.. You must give an answer, even if you are not sure. Bounding boxes are in the format (ymin, "
    "xmin, ymax, xmax) relative to an image size of 1000x1000."
)
CATEGORIES = ("recipe", "ingredient", "nutrition", "fine_grained", "3d_perception", "object_motion", "gaze")


def prompt(sample: Sample) -> str:
    choices = " ".join(lettered(sample, "({letter}) {text}."))
    inputs = named_inputs(sample.columns["inputs"])
    return f"{inputs}Question: {sample.question.removeprefix(inputs)}. Answers: {choices} Correct: "


def official(sample: Sample, text: str) -> float:
    """The first capital letter of the reply. Known mistakes: `The answer is B` is read as T, and so is wrong; `I think
    B` as I."""
    found = re.search("[A-Z]", text)
    return float(
        found is not None and found[0] in LETTERS[: len(sample.options)] and found[0] == sample.answer
    )


def with_category(samples: list[Sample]) -> list[Sample]:
    """The questions with the first part of their prototype's name as the column `category`.

    One medium alone is listed too: the prompt marks its place, behind its name.
    """
    return [
        replace(each, media=each.sources, columns={**each.columns, "category": _category(each)})
        for each in samples
    ]


def _category(sample: Sample) -> str:
    prototype = str(sample.columns["prototype"])
    return next((each for each in CATEGORIES if prototype.startswith(each)), prototype)


def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """The means of prototypes' and of categories' accuracy in percent, by the official rule."""
    return {
        f"mean_of_{plural}": fmean(percent(each.official or 0.0 for each in part) for part in parts.values())
        for plural, key in (("prototypes", "prototype"), ("categories", "category"))
        if (parts := grouped(scored, lambda sample, key=key: sample.columns[key]))
    }


HD_EPIC = Benchmark(
    name="hd_epic",
    reader="hd_epic",
    files="*.json",
    notes="Published: Qwen2.5-VL-7B 25.7, EgoReasoner-3B 37.5 (arXiv 2603.06561).",
    sources=("https://hd-epic.github.io", "https://github.com/hd-epic/hd-epic-vqa-eval"),
    prepare=with_category,
    prompt=prompt,
    system=SYSTEM,
    official=official,
    groups=("category", "prototype"),
    summary=summary,
)
