"""Cited, answered and annotated times on one axis, which several videos share: each begins `APART_S` after the last.

So rewards compare spans of numbers, whatever number of videos a question has; of a single one they are its own seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from grpo.groups import Rollout, Sample
from grpo.media.clip import Clip
from grpo.media.variants import cited_patches
from rewards.parsing import (
    KEYFRAMES,
    only_block,
    read_moments,
    read_videos_moments,
    read_videos_span,
    unbracketed,
)
from rewards.spelling import layers

Span = tuple[float, float]

APART_S = 1e6
"""The distance between the times of two videos: more than a video lasts, and so much that no tolerance reaches from one
into the next."""
NOWHERE_S = -1e10
"""Where moments outside their video are: before all videos, at least as far apart as a moment's digits reach."""
# 3.3 - 0.3 is not 3.0
ROUNDING_S = 1e-6


def cited_moments(rollout: Rollout) -> list[Span]:
    """The spans that the completion's one block of moments cites; empty if it can't be read."""
    content = only_block(rollout.text, KEYFRAMES)
    if content is None:
        return []
    if rollout.sample.num_videos < 2:
        return read_moments(content) or []
    durations_s = [clip.duration_s for clip in videos_of(rollout.clips)]
    ends_s = durations_s or [APART_S / 2] * rollout.sample.num_videos
    read = read_videos_moments(content, rollout.sample.num_videos) or []
    return [_placed(number - 1, span, ends_s[number - 1]) for number, span in read]


def answered_span(content: str | None, num_videos: int) -> Span | None:
    """The one span that an answer is; None if it can't be read as one."""
    read = read_videos_span(content, num_videos)
    return None if read is None else _on_axis(*read, num_videos)


def answered_point(content: str | None, num_videos: int) -> float | None:
    """The one moment that an answer is; None if it can't be read as one."""
    if content is None:
        return None
    inside = unbracketed(layers(content)[-1])
    read = read_videos_moments(inside, num_videos) if num_videos > 1 else _of_the_first(read_moments(inside))
    match read:
        case [(number, (start, end))] if start == end:
            moment = _on_axis(number, (start, end), num_videos)
            return None if moment is None else moment[0]
    return None


def video_number(span: Span) -> int:
    """The number of the video that a span is of, from 0."""
    return max(0, int(span[0] // APART_S))


def annotated_moments(sample: Sample) -> tuple[Span, ...]:
    """The spans that a sample's record annotates."""
    others = (
        _shifted(span, number * APART_S)
        for number, spans in enumerate(sample.other_keyframes_s, start=1)
        for span in spans
    )
    return (*sample.keyframes_s, *others)


def inside_clip(spans: Sequence[Span], rollout: Rollout) -> list[Span]:
    """The spans that lie inside their clip as a whole; a question without a clip has no end."""
    if rollout.sample.num_videos > 1:
        return [span for span in spans if span[0] >= 0]
    end_s = rollout.clip.duration_s + ROUNDING_S if rollout.clip else math.inf
    return [span for span in spans if span[0] >= 0 and span[1] <= end_s]


def by_video(spans: Iterable[Span], num_videos: int) -> list[list[Span]]:
    """The spans of each of so many videos, in its own seconds; of several, those outside their video are left out."""
    if num_videos < 2:
        return [[*spans]]
    parts: list[list[Span]] = [[] for _ in range(num_videos)]
    for span in spans:
        if span[0] >= 0:
            number = video_number(span)
            parts[number].append(_shifted(span, -number * APART_S))
    return parts


def cited_patches_by_video(rollout: Rollout) -> tuple[tuple[int, ...], ...]:
    """The temporal patches of each video that the completion cites something of; of a lone picture, its own."""
    spans = by_video(inside_clip(cited_moments(rollout), rollout), rollout.sample.num_videos)
    return tuple(map(cited_patches, videos_of(rollout.clips), spans))


def videos_of(clips: Sequence[Clip]) -> list[Clip]:
    """The videos among clips; a lone picture is a video of one frame."""
    return [clip for clip in clips if not clip.is_picture or len(clips) == 1]


def _placed(index: int, span: Span, end_s: float) -> Span:
    is_inside = span[0] >= 0 and span[1] <= end_s + ROUNDING_S
    return _shifted(span, index * APART_S if is_inside else (index + 1) * NOWHERE_S)


def _on_axis(number: int, span: Span, num_videos: int) -> Span | None:
    # What lies behind the end of a video's axis would be a time of the next one.
    is_behind = num_videos > 1 and span[1] >= APART_S
    return None if is_behind else _shifted(span, (number - 1) * APART_S)


def _of_the_first(moments: list[Span] | None) -> list[tuple[int, Span]] | None:
    return None if moments is None else [(1, moment) for moment in moments]


def _shifted(span: Span, by_s: float) -> Span:
    return span[0] + by_s, span[1] + by_s
