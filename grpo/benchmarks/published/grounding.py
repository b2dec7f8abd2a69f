"""Charades-STA and Ego4D's natural language queries: when is it? Temporal IoU, its mean (mIoU), and R@1.

R@1 at 0.3 is the share of queries whose one answer has an IoU of 0.3 or more; Ego4D's code wants more than that.

Charades-STA: prompt and reading of replies are lmms-eval's, misspelling included; it has no official ones. Sentences
are asked without their full stop, and whether the file behind lmms-eval has one could not be verified.

Ego4D: our prompt, since there is no official one; the submission is that of the challenge, with one window each.
Queries that the reader leaves out (without a text, or without a length) are in neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import ge, gt
from pathlib import Path

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, Verdict
from grpo.benchmarks.replies import percent, written
from grpo.benchmarks.rules import answer_text, strict, temporal_iou
from grpo.data.readers import charades_sta
from grpo.groups import Sample
from rewards.parsing import read_span

THRESHOLDS = (0.3, 0.5, 0.7)
PROMPT = (
    "Please find the visual event described by a sentence in the video, determining its starting and ending times. "
    "The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn a "
    "light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: {sentence}. Please "
    "return its start time and end time."
)
EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
KEYWORDS = ("start", "end", "happen")
CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
CLOCK_RANGE = re.compile(rf"\b({CLOCK})\s*[–-]\s*({CLOCK})\b")
# (?<!\d): from inside a number there is nothing more to find, and without it a long one takes quadratic time.
RANGE = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)\s*[–-]\s*(\d+(?:\.\d+)?)")
RANGE_WITH_UNIT = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)\s*s?\s*[–-]\s*(\d+(?:\.\d+)?)\s*s?")
ONE_RANGE = re.compile(
    r"(?<![\d.:])(\d+(?:\.\d+)?)\s*(?:s|sec|seconds?)?\s*(?:[–-]|\bto\b)\s*(\d+(?:\.\d+)?)(?![\d:])",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)\b")


def prompt(sample: Sample) -> str:
    before, after = charades_sta.QUESTION.split("{sentence}")
    sentence = sample.question.removeprefix(before).removesuffix(after)
    return PROMPT.format(sentence=sentence)


def charades_ours(sample: Sample, text: str) -> Verdict | None:
    """The IoU of the one window in a reply, which the prompt asks for in a sentence; of several none is read."""
    found = ONE_RANGE.findall(text)
    return strict(sample, "-".join(found[0]) if len(found) == 1 else text)


def charades_official(sample: Sample, text: str) -> float:
    """lmms-eval's `extract_time`, and the IoU of what it finds; nothing counts as 0.

    Known mistakes: every "to" is a dash, also in "tomato"; of several windows the first counts; a window that ends
    before it starts is turned round; and two numbers in two lines are a window, whatever they count.
    """
    found, truth = extract_time(text), read_span(sample.answer)
    if found is None or truth is None:
        return 0.0
    (start, end), (first, last) = found, truth
    hull = max(end, last) - min(start, first)
    return max(min(end, last) - max(start, first), 0.0) / hull if hull > 0 else 0.0


def extract_time(text: str) -> tuple[float, float] | None:
    """The first window that lmms-eval reads."""
    parts = re.split(r"[!?\n]", text.lower().replace(EXAMPLE, "").replace("to", "-"))
    parts = [part for part in parts if any(word in part for word in KEYWORDS)] or parts
    found = _first(CLOCK_RANGE, parts) or _first(RANGE, parts)
    if not found:
        found = [clock for part in parts for clock in re.findall(rf"\b({CLOCK})\b", part)][:2]
    if len(found) < 2:
        found = [match[1] for part in parts if (match := NUMBER.search(part))][:2]
    if len(found) < 2:
        found = _first(RANGE_WITH_UNIT, parts)
    if not found:
        return None
    start, end = map(_seconds, found)
    return (start, end) if end > start else (end, start)


def _first(pattern: re.Pattern[str], parts: Sequence[str]) -> list[str]:
    matches = (pattern.search(part) for part in parts)
    return next((list(match.groups()) for match in matches if match), [])


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def nlq_official(sample: Sample, text: str) -> float:
    """The IoU of the window; one that can't be read is submitted as 0 to 0, which has none."""
    return temporal_iou(sample, text) or 0.0


def recall(above: Callable[[float, float], bool]) -> Callable[[Sequence[ScoredAnswer]], Mapping[str, float]]:
    """A summary of mIoU and R@1 in percent, where an IoU counts if it is `above` the threshold."""

    def summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
        ious = [each.official or 0.0 for each in scored]
        recalls = {f"R@1, IoU {limit}": percent(above(iou, limit) for iou in ious) for limit in THRESHOLDS}
        return {"mIoU": percent(ious), **recalls}

    return summary


def nlq_submission(scored: Sequence[ScoredAnswer]) -> Mapping[str, str]:
    """The challenge's file. Its evaluation counts only queries that are in it, so those that can't be read are too."""
    results = {
        "version": "1.0",
        "challenge": "ego4d_nlq_challenge",
        "results": [_window(each) for each in scored],
    }
    return {"nlq_submission.json": written(results)}


def _window(scored: ScoredAnswer) -> dict[str, object]:
    source = scored.sample.clip_source
    annotation, _, index = scored.sample.id.rpartition("/")[2].rpartition("_")
    text = None if scored.answer.finish == "failed" else answer_text(scored.answer.text, has_tags=False)
    return {
        "clip_uid": Path(source.video or "").stem if source else "",
        "annotation_uid": annotation,
        "query_idx": int(index),
        "predicted_times": [list(read_span(text) or (0.0, 0.0))],
    }


CHARADES_STA = Benchmark(
    name="charades_sta",
    reader="charades_sta",
    sources=(
        "https://arxiv.org/abs/1705.02101",
        "https://github.com/jiyanggao/TALL",
        "https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/charades_sta/utils.py",
    ),
    prompt=prompt,
    ours=charades_ours,
    official=charades_official,
    summary=recall(ge),
)
EGO4D_NLQ = Benchmark(
    name="ego4d_nlq",
    reader="ego4d_nlq",
    sources=(
        "https://ego4d-data.org/docs/benchmarks/episodic-memory",
        "https://github.com/EGO4D/episodic-memory/blob/main/NLQ/VSLNet/utils/evaluate_ego4d_nlq.py",
    ),
    official=nlq_official,
    groups=("template",),
    summary=recall(gt),
    submission=nlq_submission,
)
