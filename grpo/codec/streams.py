"""A stream: a continuous sequence of named channels at a fixed rate, and its `.npz` file, without pickled objects."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

_PARSING = Lock()
"""numpy parses an array's header as Python, of which two threads at once end in a SystemError now and then before
Python 3.12: https://github.com/python/cpython/issues/106905."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stream:
    """A sequence of T time steps with C channels, as a sensor, a body or a robot's controller gives it.

    It refuses by name, with ValueError, what no codec could work on: no steps, NaN, or channels without a unit.
    """

    values_TC: np.ndarray
    """float32, each channel in its unit."""
    rate_hz: float
    start_s: float
    """The time of the first step on the clock of the clip that the stream belongs to."""
    channels: tuple[str, ...]
    units: tuple[str, ...]
    """The unit of each channel, as "m", "m/s", "deg"; "1" for a number without one."""

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise ValueError(problem)

    @property
    def duration_s(self) -> float:
        return len(self.values_TC) / self.rate_hz


def write_stream(path: Path, stream: Stream) -> None:
    """Write a stream to a file that `read_stream` reads back to an equal one."""
    np.savez_compressed(
        path,
        values=stream.values_TC,
        rate_hz=np.float64(stream.rate_hz),
        start_s=np.float64(stream.start_s),
        channels=np.array(stream.channels, dtype=np.str_),
        units=np.array(stream.units, dtype=np.str_),
    )


def read_stream(path: Path) -> Stream:
    """The stream of an `.npz` file; ValueError with the file's name if it is none, or holds what a stream refuses."""
    try:
        with _PARSING, np.load(path, allow_pickle=False) as arrays:
            return Stream(
                values_TC=arrays["values"],
                rate_hz=float(arrays["rate_hz"]),
                start_s=float(arrays["start_s"]),
                channels=tuple(map(str, arrays["channels"])),
                units=tuple(map(str, arrays["units"])),
            )
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except KeyError as error:
        raise ValueError(f"{path}: not a stream, {error.args[0]}") from error
    except (OSError, EOFError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _problem(stream: Stream) -> str:
    values_TC, channels, units = stream.values_TC, stream.channels, stream.units
    if values_TC.ndim != 2 or values_TC.dtype != np.float32:
        return f"a stream is float32 of (time steps, channels), not {values_TC.dtype} of {values_TC.shape}"
    if not values_TC.size:
        return f"the stream is empty: {values_TC.shape[0]} time steps of {values_TC.shape[1]} channels"
    if len(channels) != values_TC.shape[1] or len(units) != len(channels):
        return f"{values_TC.shape[1]} channels have {len(channels)} names and {len(units)} units"
    if len(set(channels)) < len(channels) or not all(channels) or not all(units):
        return "each channel has a name of its own and a unit"
    if not (math.isfinite(stream.rate_hz) and stream.rate_hz > 0 and math.isfinite(stream.start_s)):
        return f"a rate of {stream.rate_hz} Hz from {stream.start_s} s"
    if not np.isfinite(values_TC).all():
        step, channel = np.argwhere(~np.isfinite(values_TC))[0]
        return f"channel {channels[channel]} is {values_TC[step, channel]} at time step {step}"
    return ""
