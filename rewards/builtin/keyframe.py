"""Rewards of the cited moments: against annotated spans, against scores of frames, or against the policy's
own evidence.

All are our own designs (no formula was published for EgoVLM's keyframe reward), in seconds of the clip.
`keyframe`, the F1 of cited moments against annotated spans, is the one to start with. What they have in
common: a completion that cites nothing readable is worth 0, a citation outside the clip is a miss, and None
means that the sample has nothing to compare with.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from grpo.groups import Rollout, Sample
from grpo.media.variants import frames_of
from rewards import counterfactual, reward
from rewards.builtin.moments import (
    ROUNDING_S,
    Span,
    annotated_moments,
    by_video,
    cited_moments,
    cited_patches_by_video,
    inside_clip,
    videos_of,
)
from rewards.builtin.rightness import mean_of, rightness
from rewards.parsing import KEYFRAMES


@reward
def keyframe(rollout: Rollout, *, tolerance_s: float = 0.5) -> float | None:
    """F1 of the cited moments against the annotated spans; 0 if they can't be read.

    One citation in every span earns 1, and each citation more costs precision, in a span that is found already
    as outside of all of them (`f1`). A cited moment outside the clip is a miss. None where the sample has no
    annotation: there is nothing to compare with.
    """
    annotated = annotated_moments(rollout.sample)
    if not annotated:
        return None
    cited = cited_moments(rollout)
    if not cited:
        return 0.0
    return f1(inside_clip(cited, rollout), len(cited), annotated, tolerance_s=tolerance_s)


@reward
def keyframe_iou(rollout: Rollout, *, tolerance_s: float = 0.5) -> float | None:
    """Seconds that are both cited and annotated, over seconds that are either; 0 to 1. Ours.

    Cited moments and annotated spans are each widened by tolerance_s to both sides, so that a moment has a
    length; overlaps count once. What is cited outside the clip counts as cited and never as annotated. 0 if
    nothing readable is cited; None without annotation. Citing a whole clip of 60 s of which 6 s are annotated
    earns 0.1; a single moment inside a long annotated span earns little too, where `keyframe` gives 1.
    """
    annotated = annotated_moments(rollout.sample)
    if not annotated:
        return None
    cited = cited_moments(rollout)
    wide = widened(annotated, tolerance_s)
    either_s = length_s([*widened(cited, tolerance_s), *wide])
    both_s = overlap_s(widened(inside_clip(cited, rollout), tolerance_s), wide)
    return both_s / either_s if either_s else 0.0


@reward
def keyframe_hit(rollout: Rollout, *, k: int = 1, tolerance_s: float = 0.5) -> float | None:
    """1 if one of the first k cited moments lies within tolerance_s of an annotated span, else 0. Hit at k,
    as in retrieval.

    A hit is what `keyframe` counts as one. Citations after the k-th count for nothing, right or wrong. None
    without annotation. k=1 can't be gamed by citing much; k of n equally likely places earns k / n by chance.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    annotated = annotated_moments(rollout.sample)
    if not annotated:
        return None
    first = inside_clip(cited_moments(rollout)[:k], rollout)
    return float(any(hits(moment, span, tolerance_s) for moment in first for span in annotated))


@reward
def keyframe_distance(rollout: Rollout, *, scale_s: float = 1.0) -> float | None:
    """The F1 of `keyframe` with graded hits, exp(-distance / scale_s) in place of 1 or 0; 0 to 1. Ours.

    Recall is the mean over spans of the nearness of the nearest citation. Precision is the mean over citations
    of the nearness to the nearest span, with 0 for all but the nearest of those that share that span: a
    citation repeated earns nothing. The distance is 0 inside the span and else by how much the
    citation sticks out of it, so that a long cited span is far from a short annotated one. None without
    annotation. It still pulls where `keyframe` is flat at 0; in exchange the middle of the clip earns
    something without looking.
    """
    if scale_s <= 0:
        raise ValueError(f"scale_s must be above 0, not {scale_s}")
    annotated = annotated_moments(rollout.sample)
    if not annotated:
        return None
    cited = cited_moments(rollout)
    inside = inside_clip(cited, rollout)
    if not inside:
        return 0.0
    # Of two at the same distance.
    shortest_first = sorted(annotated, key=lambda span: span[1] - span[0])
    near = [[math.exp(-overhang_s(moment, span) / scale_s) for span in shortest_first] for moment in inside]
    # The highest of a span stays.
    nearest_of = dict(sorted((row.index(max(row)), max(row)) for row in near))
    precision = sum(nearest_of.values()) / len(cited)
    recall = fmean(max(column) for column in zip(*near, strict=True))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@reward
def few_moments(rollout: Rollout, *, max_moments: int = 3, max_frac: float = 0.25) -> float | None:
    """A penalty for citing much: 0 up to the limits, falling to -1 at twice as much. Ours.

    Two limits, of which the one that is exceeded more counts: on how many moments are cited (max_moments,
    repeated ones included), and on the share of the clip's length that cited spans cover (max_frac; moments
    cover none, and of several pictures there is no length). 0 if nothing readable is cited, which is for `format`
    and `keyframe` to punish. None where the prompt asks for no moments.
    """
    if max_moments < 1 or max_frac <= 0:
        raise ValueError(f"max_moments and max_frac must be above 0, not {max_moments} and {max_frac}")
    if KEYFRAMES not in rollout.tags:
        return None
    cited = cited_moments(rollout)
    excess = len(cited) / max_moments - 1
    shown_s = sum(clip.duration_s for clip in videos_of(rollout.clips))
    if shown_s:
        excess = max(excess, length_s(cited) / (max_frac * shown_s) - 1)
    # 0.0 -: not -0
    return max(0.0 - max(excess, 0.0), -1.0)


@reward
def keyframe_scores(rollout: Rollout, *, max_moments: int = 3, tolerance_s: float = 0.5) -> float | None:
    """How high an annotator's scores are at the cited moments, against the best that could be cited; 0 to 1.
    Ours.

    The column `frame_scores` lists [time in seconds of the clip, score] of frames sampled from the clip, such
    as the similarity of each to the question; any scale will do: the lowest score of the clip becomes 0 and
    the highest 1. A cited moment selects the frame with the highest score within tolerance_s, or else the one
    nearest in time; a span all frames inside, or the one nearest to its middle. The value is the mean over all
    selected frames, with 0 for one selected again and for a citation outside the clip, over the mean of as
    many best frames, at most max_moments. So citing all frames earns little: their mean over that of the best.
    But where one frame is far above the others, max_moments guesses earn 1 if one of them selects it. 0 if
    nothing readable is cited. None without the column, or if all scores are equal. ValueError, naming the
    sample, if the column is something else.
    """
    if max_moments < 1 or tolerance_s < 0:
        raise ValueError(f"max_moments below 1 or tolerance_s below 0: {max_moments} and {tolerance_s}")
    scores = read_frame_scores(rollout.sample)
    cited = cited_moments(rollout)
    if len(set(scores.values())) < 2:
        return None
    if not cited:
        return 0.0
    times_s, low, high = list(scores), min(scores.values()), max(scores.values())
    scaled = [(score - low) / (high - low) for score in scores.values()]
    # The column is of the first video.
    inside = by_video(inside_clip(cited, rollout), rollout.sample.num_videos)[0]
    selected = sorted(selected_frames(span, times_s, scaled, tolerance_s) for span in inside)
    num_selected = sum(stop - first for first, stop in selected) + len(cited) - len(inside)
    got, seen = 0.0, 0
    for first, stop in selected:
        # Never frame by frame for each citation: thousands of both are millions.
        got, seen = got + sum(scaled[max(first, seen) : stop]), max(seen, stop)
    best = sorted(scaled, reverse=True)[: min(num_selected, max_moments)]
    return got / num_selected / fmean(best)


@counterfactual("cited_in_place", num_samples=1, greedy=True)
@reward
def self_evidence(
    rollout: Rollout,
    *,
    max_frac: float = 0.5,
    tolerance: float = 0.0,
    right_by: str = "accuracy",
    right_above: float = 0.1,
) -> float | None:
    """1 - cited share / max_frac if the answer is right and still right when all frames but the cited ones are
    black, else 0. Ours; it needs no annotation.

    The policy answers again, greedily, about the changed clip; number of tokens and timing are the same.
    Where more answers are sampled it is multiplied with their accuracy. 0 if nothing readable inside the clip
    is cited, or max_frac of the clip's frames and more: whoever cites everything shows nothing. Frames are
    cited together with those that the vision tower merges them with (two at a time in Qwen2.5-VL): of 16 frames
    one citation earns 0.75, of four frames none earns anything. None without a clip, about several
    pictures and no video, or where the second answer could not be sampled. Answers are judged by the reward
    `right_by`, with its value if it grades them (right is above right_above); None where it abstains. `tolerance`
    is that of `accuracy`.

    The cheap hack is a grid: every second frame answers almost any question, wherever its evidence is. It
    earns nothing here, and a thinner grid, which still answers many, only a part.

    What it can't see: whether the frames were needed. A question that is answered blind is answered from any
    frames (gate it: `only_if: blank_contrast`). Nor whether the moment is the one that was asked for, where
    others show the answer too (before and after). And the policy is its own judge: how many frames are left,
    and where, tells the second answer something, and could become a code for the first.
    """
    return evidence(
        rollout,
        rollout.counterfactuals["cited_in_place"],
        max_frac=max_frac,
        tolerance=tolerance,
        right_by=right_by,
        right_above=right_above,
    )


@counterfactual("cited", num_samples=1, greedy=True)
@reward
def self_evidence_cut(
    rollout: Rollout,
    *,
    max_frac: float = 0.5,
    tolerance: float = 0.0,
    right_by: str = "accuracy",
    right_above: float = 0.1,
) -> float | None:
    """As `self_evidence`, from a clip that is cut to the cited frames instead of black elsewhere. Ours.

    It costs less (a short prompt) and shows no black frames, which the policy may never have met. But the
    cited moments move together in time, so that questions about when and how long can't hold; and the policy
    has to read clips of any length.
    """
    return evidence(
        rollout,
        rollout.counterfactuals["cited"],
        max_frac=max_frac,
        tolerance=tolerance,
        right_by=right_by,
        right_above=right_above,
    )


def evidence(
    rollout: Rollout,
    again: Sequence[Rollout],
    *,
    max_frac: float,
    tolerance: float,
    right_by: str,
    right_above: float,
) -> float | None:
    """What the answers given again from the cited frames are worth, times the share of the limit that is not used."""
    own = rightness(rollout, right_by, tolerance=tolerance)
    held = mean_of([rightness(each, right_by, tolerance=tolerance) for each in again])
    videos = videos_of(rollout.clips)
    if not videos or own is None:
        return None
    num_cited = sum(
        len(frames_of(clip, patches))
        for clip, patches in zip(videos, cited_patches_by_video(rollout), strict=True)
    )
    share = num_cited / sum(clip.num_frames for clip in videos)
    if not 0 < share < max_frac or own <= right_above:
        return 0.0
    return None if held is None else held * (1 - share / max_frac)


def f1(cited: Sequence[Span], num_cited: int, annotated: Sequence[Span], *, tolerance_s: float) -> float:
    """Harmonic mean of recall (annotated spans that are hit) and precision (citations that hit, one for a span).

    So a sure hit, repeated, does not buy free guesses: with one annotated span, n citations of which any hits
    earn 2 / (n + 1).
    """
    num_found = sum(any(hits(moment, span, tolerance_s) for moment in cited) for span in annotated)
    precision, recall = num_pairs(cited, annotated, tolerance_s) / num_cited, num_found / len(annotated)
    return 2 * precision * recall / (precision + recall) if num_found else 0.0


def num_pairs(cited: Sequence[Span], annotated: Sequence[Span], tolerance_s: float) -> int:
    """How many pairs there can be of a citation and a span that it hits, each in one pair at most; a citation
    repeated is one.

    Spans choose in the order of their ends, each the hit that starts first: what starts later is left for the
    others, who can reach at least as far.
    """
    left, num_paired = {*cited}, 0
    for span in sorted(annotated, key=lambda span: span[1]):
        hitting = [moment for moment in left if hits(moment, span, tolerance_s)]
        if hitting:
            left.remove(min(hitting))
            num_paired += 1
    return num_paired


def hits(cited: Span, annotated: Span, tolerance_s: float) -> bool:
    """Whether the cited moment lies, as a whole, within the tolerance of the annotated span.

    So a cited span that is much longer than the annotated one misses, and a span never hits where its middle
    would miss: the notation itself earns nothing.
    """
    return overhang_s(cited, annotated) <= tolerance_s + ROUNDING_S


def overhang_s(cited: Span, annotated: Span) -> float:
    """The seconds by which a cited span sticks out of the annotated one; 0 inside."""
    return max(annotated[0] - cited[0], cited[1] - annotated[1], 0.0)


def widened(spans: Sequence[Span], by_s: float) -> list[Span]:
    return [(start - by_s, end + by_s) for start, end in spans]


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same seconds in ascending spans that do not overlap."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def length_s(spans: Sequence[Span]) -> float:
    """Seconds that the spans cover, overlaps once."""
    return sum(end - start for start, end in merged(spans))


def overlap_s(some: Sequence[Span], others: Sequence[Span]) -> float:
    """Seconds that both cover."""
    return max(length_s(some) + length_s(others) - length_s([*some, *others]), 0.0)


def read_frame_scores(sample: Sample) -> dict[float, float]:
    """Scores by ascending time from the column `frame_scores`; empty without one, ValueError if it is
    something else.
    """
    column = sample.columns.get("frame_scores")
    if column is None:
        return {}
    rows: Sequence[Any] = column if isinstance(column, list | tuple) else [None]
    if not all(isinstance(row, list | tuple) and len(row) == 2 and all(map(_is_finite, row)) for row in rows):
        raise ValueError(f"sample {sample.id} ({sample.source}): frame_scores is no list of [time_s, score]")
    return {float(time_s): float(score) for time_s, score in sorted(rows)}


def _is_finite(number: Any) -> bool:
    """A number as a float can hold it; neither a bool nor a text that looks like one."""
    return type(number) in (int, float) and abs(number) <= sys.float_info.max


def selected_frames(
    span: Span, times_s: Sequence[float], scores: Sequence[float], tolerance_s: float
) -> tuple[int, int]:
    """The frames, at ascending times, that a citation selects: from the first index to before the second."""
    start, end = span
    reach_s = ROUNDING_S + (tolerance_s if start == end else 0.0)
    first, stop = bisect_left(times_s, start - reach_s), bisect_right(times_s, end + reach_s)
    if start < end and first < stop:
        return first, stop

    def distance_s(index: int) -> float:
        return abs(times_s[index] - (start + end) / 2)

    if first < stop:
        best = max(range(first, stop), key=lambda index: (scores[index], -distance_s(index)))
    else:
        best = min(range(max(first - 1, 0), min(stop + 1, len(times_s))), key=distance_s)
    return best, best + 1
