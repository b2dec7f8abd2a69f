"""The figures of a step: functions return them, and they are added up to one row of `metrics.jsonl`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean as a total and a count, so that ragged rows and processes are weighted as one large row would be."""

    total: float
    count: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean:
        """Return the mean of all values that are not None."""
        present = [value for value in values if value is not None]
        return cls(sum(present), len(present))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The figures of a row, a group, a step or a process, by their names; `+` joins two sets of them."""

    means: Mapping[str, Mean] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Durations, which add up within a process; of several processes the slowest counts: the others wait for it."""

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            means=_joined(self.means, other.means, operator.add),
            sums=_joined(self.sums, other.sums, operator.add),
            maxima=_joined(self.maxima, other.maxima, max),
            seconds=_joined(self.seconds, other.seconds, operator.add),
        )

    def reduced(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """Return a number by name, without means of nothing. gather: puts lists of all processes together."""
        own = replace(self, maxima={**self.maxima, **self.seconds}, seconds={})
        whole = sum(gather([own]), Metrics())
        means = {name: mean.total / mean.count for name, mean in whole.means.items() if mean.count}
        return dict(sorted({**means, **whole.sums, **whole.maxima}.items()))


def _joined(
    one: Mapping[str, Value], other: Mapping[str, Value], join: Callable[[Value, Value], Value]
) -> dict[str, Value]:
    shared = {name: join(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **shared}
