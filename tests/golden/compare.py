"""How close a golden value has to come to the stored one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

RELATIVE = 1e-4
"""Processors add in different orders. Without AVX2 and with two threads, what AVX2 computes on one was reproduced to
1e-5, but for what the floors are there for."""

FLOORS = {
    # The difference between two computations of one number is rounding alone.
    "sampler/gap": 1e-4,
    # Positive and negative terms cancel, and what is left is as exact as they are.
    "loss": 1e-5,
    "policy/kl": 1e-5,
    # How far a tensor went: Adam makes a full step, of 3e-5 here, of a gradient that is rounding alone, as a few
    # entries of the keys' biases have it.
    "": 3e-6,
}
"""Absolute tolerances, by what a value's place contains: the first that is found."""


def differences(stored: Any, found: Any, place: str = "") -> Iterator[str]:
    """A line for each value that is another one, is missing or is new."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in sorted(stored.keys() | found.keys()):
            if key not in found or key not in stored:
                yield f"{place}/{key}: only in {'the file' if key in stored else 'what was computed'}"
            else:
                yield from differences(stored[key], found[key], f"{place}/{key}")
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for index, (old, new) in enumerate(zip(stored, found, strict=True)):
            yield from differences(old, new, f"{place}[{index}]")
    elif not same(stored, found, place):
        yield f"{place}: {found}, stored is {stored}"


def same(stored: Any, found: Any, place: str) -> bool:
    """Floats within the tolerances, everything else exactly."""
    numbers = isinstance(stored, int | float) and isinstance(found, int | float)
    if not numbers or not (isinstance(stored, float) or isinstance(found, float)):
        return stored == found
    floor = next(floor for part, floor in FLOORS.items() if part in place)
    return math.isclose(stored, found, rel_tol=RELATIVE, abs_tol=floor)
