"""Figures of a step: whatever measures them returns them; they are added up to one row of `metrics.jsonl`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Mean:
    """An average with the count behind it, by which ragged rows and processes weigh as one large one would."""

    total: float
    count: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean:
        """The average of all values that are not None."""
        present = [value for value in values if value is not None]
        return cls(sum(present), len(present))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Figures by their names, of a row, a group, a step or a process; `+` gives those of both together."""

    means: Mapping[str, Mean] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """These add up within a process; of several processes the slowest one's count, which the others wait for."""

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            means=_joined(self.means, other.means, operator.add),
            sums=_joined(self.sums, other.sums, operator.add),
            maxima=_joined(self.maxima, other.maxima, max),
            seconds=_joined(self.seconds, other.seconds, operator.add),
        )

    def reduced(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """A number for each name; a mean over nothing is left out. gather: puts lists of all processes together."""
        own = replace(self, maxima={**self.maxima, **self.seconds}, seconds={})
        whole = sum(gather([own]), Metrics())
        means = {name: mean.total / mean.count for name, mean in whole.means.items() if mean.count}
        return dict(sorted({**means, **whole.sums, **whole.maxima}.items()))


def _joined(
    one: Mapping[str, Value], other: Mapping[str, Value], join: Callable[[Value, Value], Value]
) -> dict[str, Value]:
    shared = {name: join(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **shared}
