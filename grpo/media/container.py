"""Video files as PyAV opens them: which containers are read, which stream is the video, how its frames are shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from grpo.media.clip import MediaError
from grpo.media.frames import blamed_on, check_exists, check_size

FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h263", "h264", "hevc", "av1", "obu", "ivf",
    "flv", "asf", "ogg", "mxf", "nut", "gif", "apng", "mjpeg", "rm", "dv", "gxf", "wtv", "dhav", "yuv4mpegpipe",
)  # fmt: skip
"""The containers that are read. Not among them: playlists (HLS, DASH, concat), which may name files anywhere."""
PICTURE_CODECS = ("mjpeg", "png", "bmp", "webp", "gif", "tiff")
"""Codecs of still pictures. A stream of one beside another video is a thumbnail, marked as one or not."""


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the file and its video stream. Raises MediaError, also for what FFmpeg raises inside the block."""
    check_exists(path)
    with blamed_on(f"{path}: cannot be read as a video", FFmpegError), _open(path) as container:
        stream = _video_stream(path, container)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        # Clips are decoded side by side; threads of their own would only compete and hold more frames.
        stream.codec_context.thread_count = 1
        yield container, stream


def _open(path: str) -> InputContainer:
    try:
        # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
        return av.open(
            os.path.abspath(path),
            metadata_errors="replace",
            options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"},
        )
    except ArgumentError as error:
        raise MediaError(
            f"{path}: cannot be read as a video: no video stream in a known container "
            f"({', '.join(FORMATS[:5])}, ...); playlists are not followed"
        ) from error


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    # The cover picture of a music file is a video stream of one frame.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path}: no video stream in it that can be read")
    stream = max(streams, key=lambda each: not _is_picture(each))
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its video stream")
    check_size(path, stream.codec_context.width, stream.codec_context.height)
    return stream


def _is_picture(stream: VideoStream) -> bool:
    decoder = stream.codec_context
    return stream.frames == 1 or (decoder is not None and decoder.codec.canonical_name in PICTURE_CODECS)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Yield the stream's packets but for PyAV's last one, which is empty and tells a decoder to finish."""
    return (packet for packet in container.demux(stream) if packet.size)


def stated_end_s(stream: VideoStream) -> float | None:
    """Return the second at which the video ends by its header; None where that states none."""
    if stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def check_whole(path: str) -> None:
    """Raise MediaError for a file that is shorter than its header says, in containers that are read to any end."""
    with open(path, "rb") as file:
        head = file.read(128)
    missing = _stated_size(head) - os.path.getsize(path)
    if missing > 0:
        raise MediaError(f"{path}: the file is cut off: {missing} bytes are missing at its end")


def _stated_size(head: bytes) -> int:
    """Return the size that the first bytes of an AVI or a Matroska file state; 0 if they state none."""
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little")
    # Behind its name, the size of all that follows: as many bytes as the first one has zeros in front, and one.
    *_, rest = head.partition(b"\x18\x53\x80\x67")
    if not head.startswith(b"\x1a\x45\xdf\xa3") or not rest:
        return 0
    length = 9 - rest[0].bit_length()
    size, unknown = int.from_bytes(rest[:length], "big") & (1 << 7 * length) - 1, (1 << 7 * length) - 1
    return 0 if size == unknown else len(head) - len(rest) + length + size


def upright_rgb(path: str, frame: av.VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    """Return a frame as a player shows it: cameras store how they were held, and mirrors, as a display matrix."""
    frame_HWC = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    return np.ascontiguousarray(_displayed(path, frame_HWC, frame))


def upright_size(path: str, frame: av.VideoFrame) -> tuple[int, int]:
    """Return the height and width that `upright_rgb` gives."""
    height, width = _displayed(path, np.empty((frame.height, frame.width), bool), frame).shape
    return height, width


def _displayed(path: str, pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Return the pixels, rows first, in the orientation that the frame's display matrix tells: one of eight."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A pixel at column x and row y is shown at column ax + cy and row bx + dy.
    (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].tolist()
    straight, across = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, across) > 0.02 * max(straight, across):
        raise MediaError(
            f"{path}: its display matrix turns frames by {frame.rotation} degrees, no right angle"
        )
    if across > straight:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
