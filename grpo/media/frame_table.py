"""The times of a video file's frames: listed from its packets, or counted by decoding all. Read `frame_tables` first.

A packet is nearly always a frame and its time that frame's, so that packets tell, undecoded, what else only decoding
tells. Where that does not hold, `decode.py` notices, and takes a table that relies on less.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from statistics import median
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from grpo.media.clip import MediaError
from grpo.media.container import check_whole, open_video, stated_end_s, upright_size
from grpo.media.frames import check_exists
from grpo.media.sequential import LONGEST_PAUSE_S, TICKS_PER_S, UNTIMED_FORMATS, decode_parts, in_parts

INDEXED_FORMATS = ("mp4", "matroska")
"""Containers with an index, in which a seek lands on the keyframe that was asked for."""
CODECS_WITH_TRUE_KEYFRAMES = ("h264", "hevc", "vp8", "vp9", "av1")
"""Codecs whose decoders tell a true keyframe, which needs nothing from before it, from one that is only marked.

Others are decoded from the file's start, unless all of their frames are keyframes: MPEG-4's decoder takes its habits
from the file's first frame, and H.263's begins anywhere, with garbage.
"""
LATE_START_S = 0.1
"""The most seconds that a video may start after its file's sound without a word about the clock."""
STILL_S = 0.5
"""The seconds that a file's only frame is shown, where nothing tells."""
UNDECODABLE = "no frame of it can be decoded"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameTable:
    """The times of a file's frames, in their order on display, from the first that can be decoded."""

    pts: tuple[int, ...]
    """The frames' times in ticks."""
    times_s: np.ndarray
    """The frames' times in seconds from the first frame."""
    end_s: float
    """The second at which the last frame stops being shown."""
    fps: float | None
    """The frame rate as the header has it."""
    size_px: tuple[int, int]
    """The height and width of the first frame as it is shown."""
    keyframes: np.ndarray
    """The indices of the frames that decoding can start from, the first frame always among them."""
    is_counted: bool
    """Whether a frame is known by its number in a full decoding; if not, by its pts."""


class _Seen(NamedTuple):
    """A frame, as its packet describes it or as it was decoded; times in ticks."""

    pts: int | None
    duration: int
    is_keyframe: bool
    part: int
    came_at: int | None
    """The time of the packet at which the decoder handed the frame out."""


def frame_table(path: str) -> FrameTable:
    """Return the file's frames, as its packets list them if they do. Raises MediaError."""
    return next(frame_tables(path))


def frame_tables(path: str) -> Iterator[FrameTable]:
    """Yield tables of the file's frames that rely on less and less of what its container says. Raises MediaError.

    First packets are frames, and keyframes are where they are marked; then there is no keyframe but the first; then
    all was decoded. Tables are remembered until the file changes: many clips may come from one long video.
    """
    check_exists(path)
    stat = os.stat(path)
    listed = _listed_table(path, stat.st_mtime_ns, stat.st_size)
    if listed is not None:
        yield listed
        if len(listed.keyframes) > 1:
            yield replace(listed, keyframes=listed.keyframes[:1])
    yield _counted_table(path, stat.st_mtime_ns, stat.st_size)


def reaches(path: str, time_s: float) -> bool:
    """Return whether a video goes on to a time, by its header, or where that denies it by its frames.

    Raises MediaError.
    """
    check_exists(path)
    stat = os.stat(path)
    stated_s = _header_end_s(path, stat.st_mtime_ns, stat.st_size)
    return (stated_s is not None and stated_s >= time_s) or frame_table(path).end_s >= time_s


@lru_cache(maxsize=4096)
def _header_end_s(path: str, mtime_ns: int, size_bytes: int) -> float | None:
    with open_video(path) as (_, stream):
        return stated_end_s(stream)


@lru_cache(maxsize=256)
def _listed_table(path: str, mtime_ns: int, size_bytes: int) -> FrameTable | None:
    """Return the table of the file's packets; None where they don't tell which frame is shown when."""
    check_whole(path)
    with open_video(path) as (container, stream):
        if container.format.name in UNTIMED_FORMATS:
            return None
        listed: list[_Seen] = []
        source = _noted(in_parts(path, container, stream), listed)
        first = next(decode_parts(path, stream, source), None)
        # The rest is listed without being decoded.
        for _ in source:
            pass
        if first is None:
            raise MediaError(f"{path}: " + (UNDECODABLE if listed else "the video stream holds no frames"))
        start, time_base = first.frame.pts, stream.time_base
        times = {each.pts for each in listed}
        if (
            start is None
            or start not in times
            or None in times
            or len(times) < len(listed)
            or listed[-1].part > 0
        ):
            return None
        assert time_base is not None
        _say_clock(path, container, float(start * time_base))
        # What comes before the first frame in time can't be decoded.
        shown = sorted(each for each in listed if each.pts is not None and each.pts >= start)
        pts = [each.pts for each in shown if each.pts is not None]
        keyframes = [index for index, each in enumerate(shown) if each.is_keyframe]
        return _tabulate(path, stream, first.frame, pts, shown[-1].duration, time_base, keyframes)


def _noted(source: Iterable[tuple[int, av.Packet]], listed: list[_Seen]) -> Iterator[tuple[int, av.Packet]]:
    for part, each in source:
        # An edit list cuts frames off: they are decoded, but never shown.
        if not each.is_discard:
            listed.append(_Seen(each.pts, each.duration or 0, each.is_keyframe, part, None))
        yield part, each


def _say_clock(path: str, container: InputContainer, start_s: float) -> None:
    late_s = start_s - (container.start_time or 0) / av.time_base
    if late_s > LATE_START_S:
        logger.warning(
            "%s: its video starts %.2f s after the file; times count from the first frame", path, late_s
        )


@lru_cache(maxsize=256)
def _counted_table(path: str, mtime_ns: int, size_bytes: int) -> FrameTable:
    """Return the table of the frames that decoding the whole file gives: slow, but right where packets mislead."""
    with open_video(path) as (container, stream):
        decoded = decode_parts(path, stream, in_parts(path, container, stream))
        first = next(decoded, None)
        if first is None:
            raise MediaError(f"{path}: {UNDECODABLE}")
        counted = [
            _Seen(frame.pts, frame.duration or 0, False, part, came_at)
            for frame, part, came_at in chain([first], decoded)
        ]
        rate, time_base, duration = stream.average_rate, stream.time_base, counted[-1].duration
        assert time_base is not None
        if all(each.pts is None for each in counted):
            if not rate:
                raise MediaError(f"{path}: neither its frames nor its header tell when frames are shown")
            pts, time_base, duration = range(len(counted)), 1 / rate, 1
        elif container.format.name in UNTIMED_FORMATS:
            *pts, end = _slots(path, stream, counted)
            duration = end - pts[-1]
        else:
            pts = _on_one_clock(counted)
        if any(later <= earlier for earlier, later in pairwise(pts)):
            raise MediaError(f"{path}: its frames could not be decoded in the order of their times")
        return _tabulate(path, stream, first.frame, pts, duration, time_base)


def _slots(path: str, stream: VideoStream, counted: Sequence[_Seen]) -> list[int]:
    """Return the times of an AVI's frames and its end: it has a slot for each packet, empty where a frame was dropped.

    While a slot is empty, the frame before is shown. Where frames are decoded in another order than they are shown
    in, each is shown when it comes out of the decoder, and the last ones go on at the usual step.
    """
    slots = [each.pts or 0 for each in counted]
    end = max(stream.duration or 0, max(slots) + 1)
    if stream.frames > end:
        raise MediaError(f"{path}: the file is cut off or damaged after {len(slots)} frames")
    came = [each.came_at for each in counted if each.came_at is not None]
    if slots != sorted(slots):
        step = round(median(later - earlier for earlier, later in pairwise(came)))
        slots = [*came, *(came[-1] + step * (i + 1) for i in range(len(counted) - len(came)))]
        end += came[0] - min(each.pts or 0 for each in counted)
    elif len({at - slot for at, slot in zip(came, slots, strict=False)}) > 1:
        raise MediaError(f"{path}: frames were dropped, and nothing tells when the others are shown")
    return [*slots, max(end, slots[-1] + 1)]


def _on_one_clock(counted: Sequence[_Seen]) -> list[int]:
    """Return the frames' times on the first part's clock; a part whose own clock doesn't go on follows right after."""
    shown, offset = [counted[0].pts or 0], 0
    for before, each in pairwise(counted):
        after = shown[-1] + max(before.duration, 1)
        pts = after if each.pts is None else each.pts + offset
        if each.part > before.part and not shown[-1] < pts <= after + LONGEST_PAUSE_S * TICKS_PER_S:
            offset += after - pts
            pts = after
        shown.append(pts)
    return shown


def _tabulate(
    path: str,
    stream: VideoStream,
    first_frame: av.VideoFrame,
    pts: Sequence[int],
    last_duration: int,
    time_base: Fraction,
    listed_keyframes: Sequence[int] | None = None,
) -> FrameTable:
    decoder, rate = stream.codec_context, stream.average_rate
    is_seekable = any(name in stream.container.format.name for name in INDEXED_FORMATS) and (
        decoder.codec.intra_only or decoder.codec.canonical_name in CODECS_WITH_TRUE_KEYFRAMES
    )
    mean = (pts[-1] - pts[0]) // max(len(pts) - 1, 1)
    duration = last_duration or mean or max(round((1 / rate if rate else STILL_S) / time_base), 1)

    def seconds(ticks: int) -> float:
        # One division of whole numbers: a frame at 10.01 s is at the same float as an annotated 10.01.
        return (ticks - pts[0]) * time_base.numerator / time_base.denominator

    return FrameTable(
        pts=tuple(pts),
        times_s=np.array([seconds(each) for each in pts]),
        end_s=seconds(pts[-1] + duration),
        fps=float(rate) if rate else None,
        size_px=upright_size(path, first_frame),
        keyframes=np.array(sorted({0, *(listed_keyframes or ())}) if is_seekable else [0]),
        is_counted=listed_keyframes is None,
    )
