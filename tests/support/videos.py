"""Real video files for tests, with each frame's number written into its picture."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.decode import read_clip
from grpo.media.sampling import QWEN2_5_VL, MediaSettings, PatchShape

NUM_BITS = 10
SMALL = MediaSettings(fps=4.0, min_pixels=28 * 28, max_pixels=32 * 28 * 28)
DEFAULT_OPTIONS = {"bf": "2", "crf": "18", "sc_threshold": "0"}


def numbered_picture(number: int, width_px: int, height_px: int) -> np.ndarray:
    """NUM_BITS upright bars, dark for 0 and bright for 1: still readable after compression and resizing."""
    bits = [number >> bit & 1 for bit in range(NUM_BITS)]
    bar_of_column = np.arange(width_px) * NUM_BITS // width_px
    row_W = np.where(np.array(bits)[bar_of_column] == 1, 208, 48).astype(np.uint8)
    return np.broadcast_to(row_W[None, :, None], (height_px, width_px, 3)).copy()


def read_number(frame_HWC: np.ndarray) -> int:
    row_W = frame_HWC.mean(axis=(0, 2))
    centres = (np.arange(NUM_BITS) * 2 + 1) * len(row_W) // (2 * NUM_BITS)
    return sum(1 << bit for bit, centre in enumerate(centres) if row_W[centre] > 128)


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Give the calling thread its scheduling policy back at the end of the block.

    SVT-AV1 gives a caller who is root the highest priority of real time (SCHED_FIFO), which all that is forked later
    inherits: then two workers that spin leave no core to any other process of the machine.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


@scheduled_as_before()
def write_video(
    path: Path,
    *,
    num_frames: int = 90,
    fps: Fraction | int = 30,
    pts: Sequence[int] | None = None,
    size_px: tuple[int, int] = (160, 96),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int = 24,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    matrix: Sequence[int] | None = None,
) -> str:
    """A video of numbered pictures; frame i is shown at pts[i] / fps seconds (pts None: i / fps).

    The default has a keyframe every 24 frames and B-frames in between.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size_px
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = 1 / Fraction(fps)
        stream.options = {**(DEFAULT_OPTIONS if options is None else options)}
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        container.start_encoding()
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size_px), format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def write_swapped(path: Path) -> str:
    """A video whose frames are not stored in the order of their times: every two have changed places."""
    straight = write_video(path.with_name(f"straight_{path.name}"), num_frames=30, gop=1, options={"bf": "0"})
    with av.open(straight) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.dts, packet.pts = stream, number * 33, (1 + (number ^ 1)) * 33
            packet.time_base = Fraction(1, 1000)
            target.mux(packet)
    return str(path)


def write_sound(path: Path) -> str:
    """A file of a tenth of a second of silence."""
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return str(path)


def write_bomb(path: Path, *, side_px: int) -> None:
    """A PNG of less than a kilobyte whose header claims a square of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def read_video(
    path: str | Path,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    settings: MediaSettings = SMALL,
    patches: PatchShape = QWEN2_5_VL,
) -> Clip:
    source = ClipSource(video=str(path), start_s=start_s, end_s=end_s)
    return read_clip(source, settings=settings, patches=patches)


def numbers(clip: Clip) -> list[int]:
    """Which frames of the file a clip holds."""
    return [read_number(frame_HWC) for frame_HWC in clip.frames_FHWC]


def refusal(path: str | Path, *, start_s: float = 0.0, end_s: float | None = None) -> str:
    """In one line that names the file; the reason why it can't be read."""
    with pytest.raises(MediaError) as caught:
        read_video(path, start_s=start_s, end_s=end_s)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message
