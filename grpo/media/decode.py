"""Clips read from video files with PyAV: the right frames, each decoded and resized once. Read `read_clip` first.

First the file's packets are listed without decoding them: that gives every frame's time and the keyframes.
The frames to sample are chosen from these times (`sampling.py`). Then each stretch of the file that holds
one is decoded, from the keyframe before it to the last chosen frame in it, without the frames in between that
nothing depends on. Any number of threads may do this at once: they share nothing but the read-only lists of
times. Frames are resized here and not by the decoder, whose scaler gives other values than the reference.

A clip is right or it raises `MediaError`. There is no "nearest frame that could be read".

Not torchcodec: its wheel on the package index (0.17) loads neither beside the CPU build of torch 2.13 nor without
FFmpeg's libraries in the system, and PyAV brings its own.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import groupby

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from grpo.media import sampling
from grpo.media.clip import Clip, MediaError
from grpo.media.frames import blamed_on, check_exists, check_size, make_clip
from grpo.media.sampling import QWEN2_5_VL, ChosenFrames, ClipPlan, MediaSettings, PatchShape

INDEXED_FORMATS = ("mp4", "matroska")
"""Containers with an index, in which a seek lands on the keyframe that was asked for."""
CODECS_WITH_MARKED_FRAMES = ("h264",)
"""Codecs whose packets say if no other frame depends on theirs; in others such a mark may not hold for all."""
FORMATS_WITHOUT_TIMES = ("avi",)
"""Containers that store an order of decoding, from which a packet's time can only be guessed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameTable:
    """The times of a file's frames, in order of presentation."""

    pts: tuple[int, ...]
    """The frames' times in the stream's ticks."""
    times_s: np.ndarray
    """The frames' times in seconds from the first frame."""
    end_s: float
    """The second at which the last frame stops being shown."""
    fps: float | None
    """The frame rate as the header has it."""
    size_px: tuple[int, int]
    """The height and width as the header has them, before any rotation."""
    keyframes: np.ndarray
    """The indices of the frames that decoding can start from, the first frame always among them."""
    is_timed: bool
    """Whether the frames carry times; if not, ticks are the frames' numbers in the order of decoding."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One frame of a file as its packet describes it, in ticks."""

    pts: int
    duration: int
    is_keyframe: bool


def probe(path: str, *, start_s: float = 0.0) -> None:
    """Raise MediaError unless the file opens as a video with at least one packet; decodes nothing.

    A start behind the video's end is noticed where the header states a duration.
    """
    with _open_video(path) as (container, stream):
        if next(_packets(container, stream), None) is None:
            raise MediaError(f"{path}: the video stream holds no frames")
        if stream.duration is not None and stream.time_base is not None:
            _check_start(path, start_s, float(stream.duration * stream.time_base))


def read_clip(
    path: str,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    settings: MediaSettings,
    patches: PatchShape = QWEN2_5_VL,
) -> Clip:
    """The clip from start_s to end_s (None: to the file's end), sampled and resized.

    Seconds count from the file's first frame. Raises MediaError.
    """
    table = frame_table(path)
    _check_start(path, start_s, table.end_s)
    clip_end_s = table.end_s if end_s is None else min(end_s, table.end_s)
    with blamed_on(f"{path} from {start_s:g} s to {clip_end_s:g} s", ValueError):
        chosen = _choose_frames(table, start_s, end_s, settings, patches)
    with _open_video(path) as (container, stream):
        # One reformatter for all frames: it prepares tables when it meets the first.
        to_rgb = VideoReformatter()
        decoded = _decode(path, container, stream, table, chosen.indices)
        frames = (_upright_rgb(frame, to_rgb) for frame in decoded)
        return make_clip(path, frames, chosen, (start_s, clip_end_s), settings, patches)


def plan_clip(
    path: str,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    settings: MediaSettings,
    patches: PatchShape = QWEN2_5_VL,
) -> ClipPlan:
    """Return the number and the size of the frames that `read_clip` gives, without decoding any. Raises MediaError."""
    table = frame_table(path)
    _check_start(path, start_s, table.end_s)
    with blamed_on(path, ValueError):
        return _choose_frames(table, start_s, end_s, settings, patches).plan


def frame_table(path: str) -> FrameTable:
    """The file's frames, remembered until the file changes: many clips may come from one long video."""
    check_exists(path)
    stat = os.stat(path)
    return _frame_table(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _frame_table(path: str, mtime_ns: int, size_bytes: int) -> FrameTable:
    with _open_video(path) as (container, stream):
        entries = _list_packets(path, container, stream)
        seekable = any(name in container.format.name for name in INDEXED_FORMATS)
        rate, time_base = stream.average_rate, stream.time_base
        size_px = (stream.codec_context.height, stream.codec_context.width)
    if 0 in size_px:
        raise MediaError(f"{path}: its header tells no frame size")
    is_timed = entries is not None
    if entries is None:
        if not rate:
            raise MediaError(f"{path}: neither its frames nor its header tell when frames are shown")
        entries, time_base = _count_frames(path), 1 / rate
    if not entries:
        raise MediaError(f"{path}: the video stream holds no frames")
    assert time_base is not None
    return _tabulate(
        entries,
        time_base,
        float(rate) if rate else None,
        size_px,
        seekable=seekable and is_timed,
        is_timed=is_timed,
    )


def _list_packets(path: str, container: InputContainer, stream: VideoStream) -> list[_Entry] | None:
    """Return an entry for each frame that will be shown, without decoding; None where packets lack times."""
    if container.format.name in FORMATS_WITHOUT_TIMES:
        return None
    entries = []
    for packet in _packets(container, stream):
        if packet.is_corrupt:
            raise MediaError(f"{path}: the file is cut off or damaged after {len(entries)} frames")
        if packet.pts is None:
            return None
        # An edit list can cut frames off at the start: they are decoded, but never shown.
        if not packet.is_discard:
            entries.append(_Entry(packet.pts, packet.duration or 0, packet.is_keyframe))
    return entries


def _count_frames(path: str) -> list[_Entry]:
    """Return an entry for each decoded frame, timed by its number: slow, but right where packets lack times."""
    with _open_video(path) as (container, stream):
        return [_Entry(number, 1, False) for number, _ in enumerate(container.decode(stream))]


def _tabulate(
    entries: list[_Entry],
    time_base: Fraction,
    fps: float | None,
    size_px: tuple[int, int],
    *,
    seekable: bool,
    is_timed: bool,
) -> FrameTable:
    shown = sorted({entry.pts: entry for entry in reversed(entries)}.values(), key=lambda entry: entry.pts)
    first, last = shown[0], shown[-1]
    duration = last.duration or (last.pts - first.pts) // max(len(shown) - 1, 1)
    keyframes = [i for i, entry in enumerate(shown) if i == 0 or (seekable and entry.is_keyframe)]

    def seconds(pts: int) -> float:
        # One division of whole numbers: a frame at 10.01 s is at the same float as an annotated 10.01.
        return (pts - first.pts) * time_base.numerator / time_base.denominator

    return FrameTable(
        pts=tuple(entry.pts for entry in shown),
        times_s=np.array([seconds(entry.pts) for entry in shown]),
        end_s=seconds(last.pts + duration),
        fps=fps,
        size_px=size_px,
        keyframes=np.array(keyframes),
        is_timed=is_timed,
    )


def _choose_frames(
    table: FrameTable, start_s: float, end_s: float | None, settings: MediaSettings, patches: PatchShape
) -> ChosenFrames:
    return sampling.choose_frames(
        table.times_s,
        start_s,
        end_s,
        table.size_px,
        settings,
        patches,
        file_end_s=table.end_s,
        file_fps=table.fps,
    )


def _decode(
    path: str, container: InputContainer, stream: VideoStream, table: FrameTable, indices: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames at these ascending indices of a container just opened; an index may come more than once."""
    stretches = np.searchsorted(table.keyframes, indices, side="right") - 1
    for stretch, members in groupby(zip(stretches, indices, strict=True), key=lambda member: member[0]):
        start_pts = table.pts[table.keyframes[stretch]]
        if stretch > 0:
            container.seek(start_pts, stream=stream)
        wanted = [table.pts[index] for _, index in members]
        decoded = (
            _decode_timed(container, stream, wanted) if table.is_timed else _decode_all(container, stream)
        )
        found = 0
        for pts, frame in _between(path, table, decoded, start_pts, wanted[-1]):
            while found < len(wanted) and pts == wanted[found]:
                yield frame
                found += 1
        if found < len(wanted):
            time_s = float(table.times_s[table.pts.index(wanted[found])])
            raise MediaError(f"{path}: the frame at {time_s:g} s could not be decoded")


def _decode_timed(
    container: InputContainer, stream: VideoStream, wanted: Sequence[int]
) -> Iterator[tuple[int | None, av.VideoFrame]]:
    """Yield frames with their pts: the wanted ones, and those that had to be decoded for them."""
    decoder = stream.codec_context
    may_skip = decoder.name in CODECS_WITH_MARKED_FRAMES
    missing = set(wanted)
    for packet in _packets(container, stream):
        decoder.skip_frame = "NONREF" if may_skip and packet.pts not in missing else "DEFAULT"
        yield from ((frame.pts, frame) for frame in decoder.decode(packet))
        missing.discard(packet.pts)
        if not missing:
            break
    # The decoder holds frames back to put them in order: until it is told of the end, it wants more packets.
    yield from ((frame.pts, frame) for frame in decoder.decode(None))


def _decode_all(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield all frames, each with its number in place of a pts."""
    return enumerate(container.decode(stream))


def _between(
    path: str,
    table: FrameTable,
    decoded: Iterable[tuple[int | None, av.VideoFrame]],
    start_pts: int,
    end_pts: int,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames from start_pts to end_pts, both included; MediaError for a damaged one."""
    for pts, frame in decoded:
        # Frames shown before the keyframe may need what lies before it, and come out damaged.
        if pts is None or pts < start_pts:
            continue
        if pts > end_pts:
            return
        if frame.is_corrupt:
            time_s = float(table.times_s[bisect_left(table.pts, pts, hi=len(table.pts) - 1)])
            raise MediaError(f"{path}: damaged data at {time_s:g} s")
        yield pts, frame
        if pts == end_pts:
            return


def _upright_rgb(frame: av.VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    """Return a frame as a player shows it: phones and head cameras store how they were held as a rotation."""
    frame_HWC = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(frame_HWC, round(frame.rotation / 90)))


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    # The last packet of PyAV's is empty: it tells a decoder to finish.
    return (packet for packet in container.demux(stream) if packet.size)


@contextmanager
def _open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    check_exists(path)
    with (
        blamed_on(f"{path}: cannot be read as a video", FFmpegError),
        # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
        av.open(os.path.abspath(path), metadata_errors="replace") as container,
    ):
        stream = _video_stream(path, container)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        # Clips are decoded side by side; threads of their own would only compete and hold more frames.
        stream.codec_context.thread_count = 1
        yield container, stream


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        # The cover picture of a music file is a video stream of one frame.
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError(f"{path}: no decoder for its video stream")
            check_size(path, stream.codec_context.width, stream.codec_context.height)
            return stream
    raise MediaError(f"{path}: no video stream in it that can be read")


def _check_start(path: str, start_s: float, end_s: float) -> None:
    if start_s >= end_s > 0:
        late = sampling.TooShort(f"the clip starts at {start_s:g} s, but the video ends at {end_s:g} s")
        raise MediaError(f"{path}: {late}") from late
