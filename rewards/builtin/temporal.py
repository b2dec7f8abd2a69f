"""Rewards of answers about time: spans, moments, orders of events, counts.

All read the answer block alone and are our own unless a source is named. Where the block is missing, there
twice or can't be read, they give 0; None is "this sample has no such answer".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from grpo.groups import Rollout, Sample
from rewards import reward
from rewards.builtin.keyframe import ROUNDING_S, Span, length_s, overlap_s
from rewards.builtin.matching import plain_words
from rewards.builtin.moments import annotated_moments, answered_point, answered_span, video_number, videos_of
from rewards.parsing import ANSWER, only_block, read_number
from rewards.spelling import layers

Truth = Literal["answer", "keyframes"]
"""The truth that an answer is compared with: the sample's answer (task "span") or its key moments (any task)."""


@reward
def temporal_iou(rollout: Rollout, *, against: Truth = "answer") -> float | None:
    """Seconds that are in both the answered and the true span, over seconds that are in either; 0 to 1.

    The usual measure of temporal grounding (e.g. Charades-STA, arXiv 1705.02101), as a reward in EgoThinker
    and Time-R1. Spans are written `3.0-4.5`, `3.0, 4.5` or `(3.0, 4.5)`; anything else, a moment too, is 0.
    About several videos, the number of a span's video stands in front (`2: 3.0-4.5`), of the first one's maybe not.
    Several annotated key moments count as the seconds that they cover together. None where the task is not
    "span", or (against keyframes) nothing with a length is annotated.

    The cheap hack is the whole clip: without looking it earns the share of it that the true span covers.
    """
    truth = true_spans(rollout.sample, against)
    if length_s(truth) == 0:
        return None
    span = answered_span(only_block(rollout.text, ANSWER), rollout.sample.num_videos)
    if span is None:
        return 0.0
    return overlap_s([span], truth) / length_s([span, *truth])


@reward
def timestamp_iou(rollout: Rollout) -> float | None:
    """`temporal_iou` times one minus each border's distance from the true one, as shares of the clip's length; 0 to 1.

    Time-R1's timestamp-aware IoU (arXiv 2503.13377; `iou_timestamp_reward_v2` in main.py of its code), which tells
    answers of equal overlap apart by their borders. There a border that is more than the clip's length off makes a
    negative factor; here it is 0. None where the task is not "span", or without a clip.
    """
    truth = true_spans(rollout.sample, "answer")
    if not truth or rollout.clip is None:
        return None
    span = answered_span(only_block(rollout.text, ANSWER), rollout.sample.num_videos)
    if span is None:
        return 0.0
    value = overlap_s([span], truth) / length_s([span, *truth])
    # Of a single video among pictures, and of pictures alone, it is the clip whose times are meant.
    has_several = rollout.sample.num_videos > 1
    clip = videos_of(rollout.clips)[video_number(truth[0])] if has_several else rollout.clip
    for border, true_border in zip(span, truth[0], strict=True):
        value *= max(0.0, 1 - abs(border - true_border) / clip.duration_s)
    return value


@reward
def point_in_span(rollout: Rollout, *, against: Truth = "answer", tolerance_s: float = 0.0) -> float | None:
    """1 if the answer is a moment (`3.5`) inside a true span or at most tolerance_s outside it, else 0.

    Pointing, where `temporal_iou` wants the borders. A span as an answer is 0. None where there is no true
    span.
    """
    truth = true_spans(rollout.sample, against)
    if not truth:
        return None
    point = answered_point(only_block(rollout.text, ANSWER), rollout.sample.num_videos)
    slack_s = tolerance_s + ROUNDING_S
    return float(point is not None and any(start - slack_s <= point <= end + slack_s for start, end in truth))


@reward
def event_order(rollout: Rollout, *, exact: bool = False) -> float | None:
    """How many pairs of events are in the right order: Kendall's tau, mapped from -1..1 to 0..1.

    0 is the reverse order, 1/2 what chance earns on average; with exact=True only the whole order counts, 1
    or 0. The column `events` lists the events in the right order: letters that the question gives them, or
    words without commas. The answer names them between commas, compared by `plain_words`; 0 if it does not name
    each once. None without the column; ValueError, naming the sample, if it is no list of two or more different
    events.
    """
    truth = true_order(rollout.sample)
    if not truth:
        return None
    got = read_order(only_block(rollout.text, ANSWER) or "")
    if sorted(got) != sorted(truth):
        return 0.0
    value = concordance([truth.index(event) for event in got])
    return float(value == 1) if exact else value


@reward
def counting(rollout: Rollout, *, max_error_frac: float = 0.0) -> float | None:
    """1 for the right count, falling in a straight line to 0 where it is off by max_error_frac of the right
    one.

    0: only the exact count. The error is relative to the right count, to 1 where that is 0. What is answered
    must be a whole number in digits (`3`, `3.0`). None where the task is not "number" or the sample's answer
    no count.
    """
    truth = read_number(rollout.sample.answer)
    if rollout.sample.task != "number" or truth is None or not is_count(truth):
        return None
    got = read_number(only_block(rollout.text, ANSWER) or "")
    if got is None or not is_count(got):
        return 0.0
    if got == truth:
        return 1.0
    allowed = max_error_frac * max(float(truth), 1.0)
    return max(0.0, 1 - abs(float(got) - float(truth)) / allowed) if allowed > 0 else 0.0


def true_spans(sample: Sample, against: Truth) -> list[Span]:
    """What an answer in time is compared with; empty if the sample has nothing of the kind.

    ValueError, naming the sample, if its task is "span" and its answer is none.
    """
    if against not in ("answer", "keyframes"):
        raise ValueError(f"against must be answer or keyframes, not {against!r}")
    if against == "keyframes":
        return list(annotated_moments(sample))
    if sample.task != "span":
        return []
    span = answered_span(sample.answer, sample.num_videos)
    if span is None:
        raise ValueError(
            f"sample {sample.id} ({sample.source}): answer {sample.answer!r} is no span such as 3.0-4.5"
        )
    return [span]


def true_order(sample: Sample) -> list[str]:
    """The column `events`, as `read_order` reads them; empty without one."""
    column = sample.columns.get("events")
    if column is None:
        return []
    texts = (
        column if isinstance(column, list | tuple) and all(isinstance(each, str) for each in column) else []
    )
    events = [read_order(each) for each in texts]
    if len(events) < 2 or any(len(each) != 1 or not each[0] for each in events):
        raise _no_order(sample, column)
    order = [event for (event,) in events]
    if len({*order}) < len(order):
        raise _no_order(sample, column)
    return order


def _no_order(sample: Sample, column: object) -> ValueError:
    return ValueError(
        f"sample {sample.id} ({sample.source}): events {str(column)[:60]!r} is no list of two or more different "
        "texts without commas"
    )


def read_order(content: str) -> list[str]:
    """The events between commas, in order."""
    return [" ".join(plain_words(part)) for part in re.split("[,、،]", layers(content)[-1])]


def concordance(ranks: Sequence[int]) -> float:
    """Share of the pairs that ascend; (Kendall's tau + 1) / 2 where there are no ties."""
    pairs = [(ranks[i], later) for i in range(len(ranks)) for later in ranks[i + 1 :]]
    return sum(first < later for first, later in pairs) / len(pairs)


def is_count(number: Decimal) -> bool:
    return number >= 0 and number == number.to_integral_value()
