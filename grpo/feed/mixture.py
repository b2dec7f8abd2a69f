"""The mixture of training sets: the sample at each place of a run, by epochs, or by the stated shares of datasets.

The places of a run are numbered through: step s has those from (s - 1) * prompts_per_step on. Everything is a function
of (seed, step), so a resumed run goes on exactly where it stopped, and a step's samples don't depend on the number
of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from grpo.config.schema import SHARE_UNITS
from grpo.groups import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of the mixture: samples with epochs of their own, which take `weight` of every `sum of weights` places."""

    samples: Sequence[Sample]
    weight: int = 1


def parts(sets: Sequence[Sequence[Sample]], shares: Sequence[float | None]) -> list[Part]:
    """Return one part for each set with a share; the other sets are one part together, with the rest of the places."""
    rest = [
        sample for samples, share in zip(sets, shares, strict=True) if share is None for sample in samples
    ]
    stated = [
        (samples, round(share * SHARE_UNITS))
        for samples, share in zip(sets, shares, strict=True)
        if share is not None
    ]
    weights = [weight for _, weight in stated]
    if rest:
        weights.append(SHARE_UNITS - sum(weights))
    common = math.gcd(*weights)
    samples_of = [samples for samples, _ in stated] + ([rest] if rest else [])
    return [Part(samples, weight // common) for samples, weight in zip(samples_of, weights, strict=True)]


def step_samples(
    parts: Sequence[Part], prompts_per_step: int, step: int, seed: int, order_seed: int | None = None
) -> list[Sample]:
    """Return a step's samples (the first step is 1). order_seed: gives other samples of the same parts instead."""
    sizes, weights = tuple(len(part.samples) for part in parts), tuple(part.weight for part in parts)
    picked = step_indices(sizes, weights, prompts_per_step, step, seed, order_seed)
    return [parts[part].samples[index] for part, index in picked]


def step_indices(
    sizes: tuple[int, ...],
    weights: tuple[int, ...],
    prompts_per_step: int,
    step: int,
    seed: int,
    order_seed: int | None = None,
) -> list[tuple[int, int]]:
    """Return part and index of each of a step's samples; a part has another order in each epoch."""
    first = (step - 1) * prompts_per_step
    order_seed = seed if order_seed is None else order_seed
    picked: list[tuple[int, int]] = []
    for place in range(first, first + prompts_per_step):
        part, turn = _turn(weights, place)
        epoch, within = divmod(turn, sizes[part])
        picked.append((part, int(_epoch_order(sizes[part], epoch, order_seed, part)[within])))
    if len(sizes) == 1:
        return picked
    # Parts alternate: without this shuffle, of two halves on two processes each process would see one.
    order = np.random.default_rng([seed, step, len(sizes)]).permutation(prompts_per_step)
    return [picked[slot] for slot in order]


def _turn(weights: tuple[int, ...], place: int) -> tuple[int, int]:
    """Return the part that a place belongs to, and how many places before it belong to that part."""
    part_of, before = _pattern(weights)
    rounds, within = divmod(place, sum(weights))
    part = part_of[within]
    return part, rounds * weights[part] + before[within]


@lru_cache(maxsize=8)
def _pattern(weights: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return for each of `sum(weights)` places the part that it belongs to, and how many before it belong to that part.

    After n places each part has had its share of n, rounded up or down: a part is due for its next place while it
    has had less than its share, and of the parts that are due the one goes first whose share would run ahead by a
    whole place soonest (earliest deadline first; Tijdeman 1980).
    """
    total = sum(weights)
    counts = [0] * len(weights)
    part_of, before = [], []
    for place in range(1, total + 1):
        due = [part for part, weight in enumerate(weights) if counts[part] * total < weight * place]
        part = min(due, key=lambda part: -(-(counts[part] + 1) * total // weights[part]))
        part_of.append(part)
        before.append(counts[part])
        counts[part] += 1
    return part_of, before


@lru_cache(maxsize=32)
def _epoch_order(num_samples: int, epoch: int, seed: int, part: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, part]).permutation(num_samples)
