"""Video files changed as bytes or packets, as cutters, joiners, recorders and broken writers leave them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

Change = Callable[[Path], None]


def without_sync_table(path: Path) -> None:
    """Make an mp4 that doesn't say which frames are keyframes: then all count as keyframes."""
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))


def with_false_sync_table(path: Path) -> None:
    """Make an mp4 that marks the fifth frame behind each keyframe but the first."""
    content = bytearray(path.read_bytes())
    at = content.index(b"stss") + 8
    (count,) = struct.unpack_from(">I", content, at)
    numbers = struct.unpack_from(f">{count}I", content, at + 4)
    struct.pack_into(f">{count}I", content, at + 4, numbers[0], *(number + 5 for number in numbers[1:]))
    path.write_bytes(content)


def with_edits(*edits_s: tuple[float, float]) -> Change:
    """Return a change that gives an mp4 these edits: seconds each lasts, and where it starts (-1: nothing is shown)."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        movie_scale, media_scale = (_time_scale(content, box) for box in (b"mvhd", b"mdhd"))
        entries = b"".join(
            struct.pack(
                ">IiI", round(length * movie_scale), -1 if at < 0 else round(at * media_scale), 1 << 16
            )
            for length, at in edits_s
        )
        elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits_s)) + entries
        old_at = content.index(b"edts") - 4
        (old_size,) = struct.unpack_from(">I", content, old_at)
        new = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
        # The index lies behind the frames, so that none of its offsets moves.
        assert content.index(b"mdat") < old_at
        for box in (b"moov", b"trak"):
            at = content.index(box) - 4
            (size,) = struct.unpack_from(">I", content, at)
            struct.pack_into(">I", content, at, size + len(new) - old_size)
        content[old_at : old_at + old_size] = new
        path.write_bytes(content)

    return change


def _time_scale(content: bytearray, box: bytes) -> int:
    # Behind the name: version and flags, and two dates.
    return struct.unpack_from(">I", content, content.index(box) + 4 + 12)[0]


def without_first_packets(num_packets: int) -> Change:
    """Return a change that cuts packets off at the start, as a recording begins somewhere."""

    def change(path: Path) -> None:
        _remux(path, lambda packets: packets[num_packets:])

    return change


def from_second_keyframe(path: Path) -> None:
    """Cut off all before the second keyframe, as a cut without re-encoding does.

    In an open group of pictures, the frames before the keyframe in time come behind it, and can't be decoded.
    """

    def choose(packets: list[av.Packet]) -> Sequence[av.Packet]:
        starts = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        return packets[starts[1] :]

    _remux(path, choose)


def with_earlier_sound(late_s: float) -> Change:
    """Return a change that adds sound from 0 s on, and moves the video behind it."""

    def change(path: Path) -> None:
        _remux(path, lambda packets: packets, late_s=late_s)

    return change


def with_thumbnail(path: Path) -> None:
    """Put a still picture before the video, as another video stream that nothing marks as a picture."""
    _remux(path, lambda packets: packets, has_thumbnail=True)


def with_thumbnail_alone(path: Path) -> None:
    """Put a still picture in place of all that the video stream holds."""
    _remux(path, lambda _: [], has_thumbnail=True)


def _remux(
    path: Path,
    choose: Callable[[list[av.Packet]], Sequence[av.Packet]],
    *,
    late_s: float = 0.0,
    has_thumbnail: bool = False,
) -> None:
    old = path.rename(path.with_name(f"old_{path.name}"))
    with av.open(str(old)) as source, av.open(str(path), "w") as target:
        picture = target.add_stream("mjpeg", rate=1) if has_thumbnail else None
        sound = target.add_stream("aac", rate=8000, layout="mono") if late_s else None
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = choose([packet for packet in source.demux(video=0) if packet.size])
        if picture is not None:
            assert isinstance(picture, VideoStream)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            target.mux([*picture.encode(frame), *picture.encode()])
        if sound is not None:
            assert isinstance(sound, AudioStream)
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 8192), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 8000, 0
            target.mux([*sound.encode(silence), *sound.encode()])
        for packet in packets:
            late = round(late_s / packet.time_base)
            packet.stream, packet.pts = stream, (packet.pts or 0) + late
            packet.dts = None if packet.dts is None else packet.dts + late
            target.mux(packet)
    old.unlink()


def twice(path: Path) -> None:
    """Join a file with itself, byte by byte."""
    path.write_bytes(2 * path.read_bytes())


def cut_off(path: Path) -> None:
    """Leave three fifths of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])


def with_a_gap(path: Path) -> None:
    """Take some packets of 188 bytes out of the middle of a transport stream, as bad reception does."""
    content = path.read_bytes()
    at = len(content) // 2 // 188 * 188
    path.write_bytes(content[:at] + content[at + 3 * 188 :])
