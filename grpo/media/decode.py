"""Clips read from video files with PyAV: the right frames, each decoded and resized once. Read `read_clip` first.

First the file's packets are listed (`frame_table.py`): that gives every frame's time and the keyframes. The frames
to sample are chosen from these times (`sampling.py`). Then each stretch of the file that holds one is decoded, from
the keyframe before it to the last chosen frame in it, without the frames in between that nothing depends on. Any
number of threads may do this at once: they share nothing but the read-only lists of times. Frames are resized here
and not by the decoder, whose scaler gives other values than the reference.

Frames and times are those of a full decoding from the file's start, or `MediaError` says why the clip can't be read.
What a container says is believed as long as the decoder agrees: a stretch begins with what the decoder itself calls a
keyframe, and every frame that comes has its place in the list. If not, the keyframes before it are tried, and then the
file is decoded from its start.
There is no "nearest frame that could be read".

Not torchcodec: its wheel on the package index (0.17) loads neither beside the CPU build of torch 2.13 nor without
FFmpeg's libraries in the system, and PyAV brings its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from grpo.media import sampling
from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.container import open_video, packets, stated_end_s, upright_rgb
from grpo.media.frame_table import FrameTable, frame_table, frame_tables
from grpo.media.frames import blamed_on, make_clip
from grpo.media.sampling import QWEN2_5_VL, ChosenFrames, ClipPlan, MediaSettings, PatchShape
from grpo.media.sequential import decode, decode_parts, in_parts, is_true_keyframe

CODECS_WITH_MARKED_FRAMES = ("h264",)
"""Codecs whose packets say if no other frame depends on theirs; in others such a mark may not hold for all."""
EARLIER_KEYFRAMES = 3
"""The most keyframes that frames are decoded from, one after another, before the file is decoded from its start."""
LATE_PICTURE_S = 1.0
"""How far behind a video's end a picture's time may lie and show the last frame: annotations count other frames."""
PROGRESSIVE = 1
"""FFmpeg's field order of a stream without fields."""


class NotAsListed(Exception):
    """The error for a file whose frames are not what its container says about them."""


def probe(source: ClipSource) -> None:
    """Raise MediaError unless the file opens as a video with at least one packet; decodes nothing.

    A start behind the video's end is noticed where the header states a duration.
    """
    with open_video(source.path) as (container, stream):
        if next(packets(container, stream), None) is None:
            raise MediaError(f"{source.path}: the video stream holds no frames")
        if (end_s := stated_end_s(stream)) is not None:
            _check_start(source, end_s)


def read_clip(source: ClipSource, *, settings: MediaSettings, patches: PatchShape = QWEN2_5_VL) -> Clip:
    """Return the clip of a video, sampled and resized. Raises MediaError."""
    reason = ""
    for table in frame_tables(source.path):
        try:
            return _read_by(table, source, settings, patches)
        except NotAsListed as error:
            reason = str(error)
    raise MediaError(f"{source.path}: {reason}")


def _read_by(table: FrameTable, source: ClipSource, settings: MediaSettings, patches: PatchShape) -> Clip:
    _check_start(source, table.end_s)
    path, start_s = source.path, source.start_s
    end_s = table.end_s if source.end_s is None else min(source.end_s, table.end_s)
    if source.is_picture:
        end_s = start_s + 1 / sampling.STILL_FPS
    with blamed_on(f"{path} from {start_s:g} s to {end_s:g} s", ValueError):
        chosen = _choose_frames(table, source, settings, patches)
    with open_video(path) as (container, stream):
        # One reformatter for all frames: it prepares tables when it meets the first.
        to_rgb = VideoReformatter()
        decoded = _decode(path, container, stream, table, chosen.indices)
        frames = (upright_rgb(path, frame, to_rgb) for frame in decoded)
        part_s, is_picture = (start_s, end_s), source.is_picture
        return make_clip(path, frames, chosen, part_s, settings, patches, is_picture=is_picture)


def plan_clip(source: ClipSource, *, settings: MediaSettings, patches: PatchShape = QWEN2_5_VL) -> ClipPlan:
    """Return the number and the size of the frames that `read_clip` gives. Raises MediaError.

    Only the first frame is decoded, unless the file has no times. A packet without a frame is taken for one here.
    """
    table = frame_table(source.path)
    _check_start(source, table.end_s)
    with blamed_on(source.path, ValueError):
        return _choose_frames(table, source, settings, patches).plan


def _choose_frames(
    table: FrameTable, source: ClipSource, settings: MediaSettings, patches: PatchShape
) -> ChosenFrames:
    if source.is_picture:
        return sampling.choose_picture(table.times_s, source.start_s, table.size_px, settings, patches)
    return sampling.choose_frames(
        table.times_s,
        source.start_s,
        source.end_s,
        table.size_px,
        settings,
        patches,
        file_end_s=table.end_s,
        file_fps=table.fps,
    )


def _decode(
    path: str, container: InputContainer, stream: VideoStream, table: FrameTable, indices: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames at these ascending indices of a container just opened; an index may come more than once.

    Raises NotAsListed where frames come that the table doesn't tell of, and MediaError for a damaged one.
    """
    stretches = np.searchsorted(table.keyframes, indices, side="right") - 1
    for stretch, members in groupby(zip(stretches, indices, strict=True), key=lambda member: member[0]):
        wanted = [index for _, index in members]
        begins = range(int(stretch), max(int(stretch) - EARLIER_KEYFRAMES, 0), -1) or range(1)
        for begin in begins:
            frames = _decode_from(path, container, stream, table, begin, wanted)
            try:
                head = next(frames)
            except NotAsListed:
                # What is marked as a keyframe may be none, and the one before it a true one.
                if begin == begins[-1]:
                    raise
                continue
            yield head
            yield from frames
            break


def _decode_from(
    path: str,
    container: InputContainer,
    stream: VideoStream,
    table: FrameTable,
    begin: int,
    wanted: Sequence[int],
) -> Iterator[av.VideoFrame]:
    """Yield the wanted frames, decoded from the keyframe of that number on."""
    first, times_wanted = int(table.keyframes[begin]), Counter(wanted)
    due = _due(table, stream, first, wanted)
    if begin > 0:
        container.seek(table.pts[first], stream=stream)
    if table.is_counted:
        decoded = enumerate(_decode_all(path, container, stream))
    else:
        decoded = _by_pts(table, _decode_stretch(container, stream, table, first, due))
    for index, frame in _checked(path, table, decoded, first, due):
        yield from repeat(frame, times_wanted[index])


def _decode_stretch(
    container: InputContainer, stream: VideoStream, table: FrameTable, first: int, due: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames that are due, and those that had to be decoded for them."""
    decoder = stream.codec_context
    may_skip = _leaves_out(decoder)
    missing = {table.pts[index] for index in due}
    has_begun = False
    for packet in packets(container, stream):
        decoder.skip_frame = "NONREF" if may_skip and packet.pts not in missing else "DEFAULT"
        for frame in decode(decoder, packet, may_fail=not has_begun):
            has_begun |= frame.pts is not None and frame.pts >= table.pts[first]
            yield frame
        missing.discard(packet.pts)
        if not missing:
            break
    # The decoder holds frames back to put them in order: until it is told of the end, it wants more packets.
    yield from decoder.decode(None)


def _decode_all(path: str, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    return (each.frame for each in decode_parts(path, stream, in_parts(path, container, stream)))


def _leaves_out(decoder: VideoCodecContext) -> bool:
    """Whether frames that nothing depends on are not decoded."""
    # Where a frame may be two fields, its second one has a packet, and a time, of its own.
    return decoder.name in CODECS_WITH_MARKED_FRAMES and decoder.field_order == PROGRESSIVE


def _by_pts(table: FrameTable, decoded: Iterable[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield frames with their indices; those before the table's first, which nobody shows, are left out."""
    for frame in decoded:
        pts = table.pts[-1] + 1 if frame.pts is None else frame.pts
        index = bisect_left(table.pts, pts)
        if index == len(table.pts) or table.pts[index] != pts and pts > table.pts[0]:
            raise NotAsListed(f"a frame comes whose time ({frame.pts} ticks) no packet has")
        if pts >= table.pts[0]:
            yield index, frame


def _due(table: FrameTable, stream: VideoStream, first: int, wanted: Sequence[int]) -> Sequence[int]:
    """Return the ascending indices of the frames of a stretch that have to come."""
    if table.is_counted or not _leaves_out(stream.codec_context):
        return range(first, wanted[-1] + 1)
    return sorted({*wanted, *([first] if first > 0 else [])})


def _checked(
    path: str,
    table: FrameTable,
    decoded: Iterable[tuple[int, av.VideoFrame]],
    first: int,
    due: Sequence[int],
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames of a stretch in ascending order, the ones that are due among them."""
    to_come = deque(due)
    latest = first - 1
    for index, frame in decoded:
        # Frames shown before the keyframe may need what lies before it, and come out damaged.
        if index < first:
            continue
        if index <= latest or index > to_come[0]:
            break
        if first > 0 and index == first and not table.is_counted and not is_true_keyframe(frame):
            raise NotAsListed(f"the frame at {table.times_s[first]:g} s is no keyframe, but marked as one")
        if frame.is_corrupt:
            raise MediaError(f"{path}: damaged data at {table.times_s[index]:g} s")
        yield index, frame
        latest = index
        if index == to_come[0]:
            to_come.popleft()
        if not to_come:
            return
    raise NotAsListed(f"the frame at {table.times_s[to_come[0]]:g} s could not be decoded")


def _check_start(source: ClipSource, end_s: float) -> None:
    late_s = LATE_PICTURE_S if source.is_picture else 0.0
    if source.start_s >= end_s + late_s and end_s > 0:
        late = f"the clip starts at {source.start_s:g} s, but the video ends at {end_s:g} s"
        raise MediaError(f"{source.path}: {late}") from sampling.TooShort(late)
