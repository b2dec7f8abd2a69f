"""Figures of a step, collected on every process and reduced to one row of `metrics.jsonl`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any


class Tally:
    """Means are weighted by their counts, so that ragged processes count as one large one."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._sums: dict[str, float] = defaultdict(float)
        self._maxima: dict[str, float] = {}

    def mean(self, key: str, values: Iterable[float | None]) -> None:
        """Average over all values that are not None; the key is left out of the row if there are none."""
        present = [value for value in values if value is not None]
        self.mean_of(key, sum(present), len(present))

    def mean_of(self, key: str, total: float, count: float) -> None:
        old_total, old_count = self._means[key]
        self._means[key] = (old_total + total, old_count + count)

    def add(self, key: str, value: float) -> None:
        """Sum over processes."""
        self._sums[key] += value

    def highest(self, key: str, value: float) -> None:
        """Maximum over processes."""
        self._maxima[key] = max(value, self._maxima.get(key, value))

    def take(self, part: Tally) -> None:
        """Add the figures of another."""
        for key, (total, count) in part._means.items():
            self.mean_of(key, total, count)
        for key, value in part._sums.items():
            self.add(key, value)
        for key, value in part._maxima.items():
            self.highest(key, value)

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Seconds spent in the block, of the slowest process."""
        start = perf_counter()
        yield
        self._maxima[key] = self._maxima.get(key, 0.0) + perf_counter() - start

    def reduced(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """One figure per key. gather: an object from every process."""
        means: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        row: dict[str, float] = defaultdict(float)
        for part_means, part_sums, part_maxima in gather((dict(self._means), dict(self._sums), self._maxima)):
            for key, (total, count) in part_means.items():
                means[key] = (means[key][0] + total, means[key][1] + count)
            for key, value in part_sums.items():
                row[key] += value
            for key, value in part_maxima.items():
                row[key] = max(value, row.get(key, value))
        row.update({key: total / count for key, (total, count) in means.items() if count})
        return dict(sorted(row.items()))
