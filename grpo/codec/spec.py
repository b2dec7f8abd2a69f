"""What a codec is, without its weights: enough to name its tokens, and to tell whether a stream is one of its kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from grpo.codec.streams import Stream

Kind = Literal["residual", "product", "plain", "bins"]

MOST_SHOWN = 5
"""The number of names that an error lists."""

# Without an underscore: <motion_1_5> would be code 5 of level 1 of "motion", and of the one level of "motion_1".
NAME = re.compile(r"[a-z][a-z0-9]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSpec:
    """A codec's name, codes, and the streams that it is for."""

    name: str
    """The first part of its tokens' names: lower-case letters and digits, as "motion"."""
    kind: Kind
    levels: int
    """The codes of each code step: quantiser levels, or for bins the channels."""
    codebook_size: int
    """The codes that each level can have."""
    downsampling: int
    """The time steps of each code step."""
    rate_hz: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    digest: str = ""
    """A hash of the codec's files; empty for one that has not been saved."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a codec's name is lower-case letters and digits, not {self.name!r}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"no kind of codec {self.kind!r}; there are {', '.join(get_args(Kind))}")
        if min(self.levels, self.downsampling) < 1 or self.codebook_size < 2 or not self.rate_hz > 0:
            raise ValueError(f"{self.levels} levels of {self.codebook_size} codes at {self.rate_hz} Hz")
        if not self.channels or len(self.channels) != len(self.units):
            raise ValueError(f"{len(self.channels)} channels have {len(self.units)} units")

    @property
    def codes_per_s(self) -> float:
        """The rate of tokens: all levels' together."""
        return self.rate_hz / self.downsampling * self.levels


def check_stream(spec: CodecSpec, stream: Stream) -> None:
    """Raise ValueError that says what of a stream is not as the codec was trained: rate, channels, units or length."""
    if abs(stream.rate_hz - spec.rate_hz) > 1e-6 * spec.rate_hz:
        raise ValueError(f"the stream has {stream.rate_hz:g} Hz, the codec {spec.name} {spec.rate_hz:g} Hz")
    if stream.channels != spec.channels:
        raise ValueError(
            f"the stream's channels are not those of the codec {spec.name}: "
            f"{_difference(stream.channels, spec.channels)}"
        )
    if stream.units != spec.units:
        wrong = [
            f"{channel} in {given} and not {own}"
            for channel, given, own in zip(spec.channels, stream.units, spec.units, strict=True)
            if given != own
        ]
        raise ValueError(f"the stream has other units than the codec {spec.name}: {_few(wrong)}")
    if len(stream.values_TC) < spec.downsampling:
        raise ValueError(
            f"{len(stream.values_TC)} time steps are shorter than one code of {spec.name}, {spec.downsampling}"
        )


def _difference(given: Sequence[str], own: Sequence[str]) -> str:
    if set(given) == set(own):
        return "they are in another order"
    missing, unknown = [n for n in own if n not in given], [n for n in given if n not in own]
    parts = [f"{word} {_few(names)}" for word, names in (("without", missing), ("with", unknown)) if names]
    return ", ".join(parts)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
