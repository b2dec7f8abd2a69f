"""A video file decoded from its start to its end, as a player does: what every faster way of reading has to equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import NamedTuple

import av
from av.container import InputContainer
from av.error import InvalidDataError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from grpo.media.clip import MediaError
from grpo.media.container import packets

UNTIMED_FORMATS = ("avi",)
"""Containers that store when a packet is decoded, and not when its frame is shown."""
JOINED_FORMATS = ("mpegts", "mpeg")
"""Containers that may be joined byte by byte, whose parts may have clocks of their own."""
TICKS_PER_S = 90_000
"""The ticks of the clock of an MPEG program or transport stream."""
LONGEST_PAUSE_S = 10.0
"""The longest gap in a recording; at a longer one, another clock begins."""
MARKED_BEFORE_JOIN = 2
"""The most packets at the end of a part that count as damaged because the stream's counter jumps behind them."""


class Decoded(NamedTuple):
    """A frame of a full decoding."""

    frame: av.VideoFrame
    part: int
    """The number of the part of a joined file that it belongs to."""
    came_at: int | None
    """The time of the packet at which the decoder handed the frame out; None at the end."""


def in_parts(path: str, container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, av.Packet]]:
    """Yield packets with the numbers of their parts; one begins where a clock is set anew, or data are missing.

    In a container without times, a packet's pts is the time at which it is decoded. Raises MediaError where data are
    missing that later pictures may depend on: not every decoder says so.
    """
    may_be_joined = container.format.name in JOINED_FORMATS
    part, previous, num_marked = 0, None, 0
    for number, packet in enumerate(packets(container, stream)):
        if container.format.name in UNTIMED_FORMATS:
            packet.pts = packet.dts
        if may_be_joined and previous is not None:
            begins = _clock_is_set(previous, packet) or (num_marked > 0 and packet.is_keyframe)
            part, num_marked = part + begins, 0 if begins else num_marked
        num_marked += packet.is_corrupt or num_marked > 0
        if num_marked > (MARKED_BEFORE_JOIN if may_be_joined else 0):
            raise MediaError(f"{path}: the file is cut off or damaged after {number} frames")
        yield part, packet
        previous = packet
    if num_marked > 0:
        raise MediaError(f"{path}: the file is cut off or damaged at its end")


def _clock_is_set(previous: av.Packet, packet: av.Packet) -> bool:
    """Whether a clock is set back, or far ahead, between two packets of a joined file."""
    if packet.dts is None or previous.dts is None:
        return False
    gap = packet.dts - previous.dts
    return gap < 0 or (gap == 0 and packet.is_keyframe) or gap > LONGEST_PAUSE_S * TICKS_PER_S


def decode_parts(
    path: str, stream: VideoStream, source: Iterable[tuple[int, av.Packet]]
) -> Iterator[Decoded]:
    """Yield the frames of these packets in their order on display, from the first that can be decoded."""
    for part, members in groupby(source, key=lambda member: member[0]):
        if part > 0:
            stream.codec_context.flush_buffers()
        yield from _decode_part(path, stream.codec_context, part, (packet for _, packet in members))


def _decode_part(
    path: str, decoder: VideoCodecContext, part: int, source: Iterator[av.Packet]
) -> Iterator[Decoded]:
    """Yield the frames from the first whole one: a recording may start inside a group of pictures."""
    first = next(source)
    has_begun, num_frames, num_packets = False, 0, -1
    for packet in chain([first], source, [None]):
        num_packets += 1
        is_keyframe = packet is not None and packet.is_keyframe
        # An edit list cuts frames off that others depend on.
        has_begun |= is_keyframe and packet is not None and packet.is_discard
        for frame in decode(decoder, packet, may_fail=not has_begun and not is_keyframe):
            has_begun |= _is_whole(frame, decoder, first)
            if has_begun:
                num_frames += 1
                yield Decoded(frame, part, None if packet is None else packet.dts)
    # Not every decoder says where data are missing.
    if part > 0 and first.is_keyframe and num_frames < num_packets:
        raise MediaError(f"{path}: damaged: {num_packets} packets of it give {num_frames} frames")


def decode(decoder: VideoCodecContext, packet: av.Packet | None, *, may_fail: bool) -> list[av.VideoFrame]:
    """Return the frames that come out when a packet goes in, or None for the end. may_fail: damaged data give none."""
    try:
        return decoder.decode(packet)
    except InvalidDataError:
        if may_fail:
            return []
        raise


def _is_whole(frame: av.VideoFrame, decoder: VideoCodecContext, first_packet: av.Packet) -> bool:
    """Whether a decoder's first frame is whole. H.264's knows that by itself; others begin anywhere, with garbage."""
    if decoder.name == "h264" or frame.key_frame or frame.pict_type == PictureType.I:
        return True
    # Some old decoders don't tell a frame's type.
    return frame.pict_type == PictureType.NONE and first_packet.is_keyframe


def is_true_keyframe(frame: av.VideoFrame) -> bool:
    """Whether the decoder itself found a keyframe, whatever the container has marked."""
    return frame.key_frame and frame.pict_type == PictureType.I
