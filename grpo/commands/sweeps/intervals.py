"""What an ablation shows: figures per arm with intervals over seeds, as a table and as curves. Pure functions.

What the intervals say, and what not. The unit is a seed: a run of an arm is one observation, and all runs answer the
same held-out questions, so an interval covers the luck of training and not that of choosing the questions.

- The mean's 95 % interval is Student's t over the seeds.
- A difference to the first arm is taken seed by seed (same seed: same order of data). Its bootstrap interval is the
  2.5 % to 97.5 % percentile of the mean over resampled seeds: over *all* resamples where there are few seeds, so it
  holds no luck of its own. Few seeds make it too narrow: with 2 or 3 it is the range of the differences, since a
  resample that repeats the smallest one has a chance of 1/4 or 1/27. It then covers the true difference in 50 % and
  75 % of sweeps (a symmetric error falls on one side n times with chance 2^(1-n)), and with 5 and 10 seeds in about
  85 % and 91 % (simulated, normal errors). No resampling scheme repairs that: three numbers do not hold the
  information. So Student's t interval of the same differences stands beside it, which is right at any n if the errors
  are normal, and a difference is called clear only where both exclude 0, and where it is not the same in all seeds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

Interval = tuple[float, float]
Curve = Mapping[int, float]
"""A figure by step."""

MAX_ENUMERATED = 6  # 6^6 = 46,656 resamples; 7^7 = 823,543
NUM_RESAMPLES = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """One metric of one arm. An interval is None where there are fewer than two values."""

    arm: str
    num_seeds: int
    mean: float | None
    interval: Interval | None
    num_pairs: int
    """Seeds that both this arm and the first one have."""
    difference: float | None
    """Mean over the pairs of this arm minus the first; None for the first itself."""
    bootstrap: Interval | None
    student: Interval | None

    @property
    def is_clear(self) -> bool:
        """Both intervals of the difference exclude 0, from three pairs or more that are not all equal.

        Equal differences are what a metric with few values gives by chance (of two pairs, in one sweep of nine where
        there is nothing to find), and their intervals have no width.
        """
        if self.num_pairs < 3 or self.bootstrap is None or self.student is None:
            return False
        if self.student[1] - self.student[0] <= 1e-9 * abs(self.student[0]):
            return False
        return all(each[0] > 0 or each[1] < 0 for each in (self.bootstrap, self.student))


def summarise(values: Mapping[str, Mapping[int, float]]) -> list[ArmSummary]:
    """Statistics of a metric by arm and seed, in order; the first arm is the baseline."""
    baseline = next(iter(values), "")
    return [_summary(arm, values[arm], None if arm == baseline else values[baseline]) for arm in values]


def _summary(arm: str, own: Mapping[int, float], baseline: Mapping[int, float] | None) -> ArmSummary:
    pairs = [] if baseline is None else [own[seed] - baseline[seed] for seed in own if seed in baseline]
    return ArmSummary(
        arm=arm,
        num_seeds=len(own),
        mean=float(np.mean([*own.values()])) if own else None,
        interval=student_interval([*own.values()]),
        num_pairs=len(pairs),
        difference=float(np.mean(pairs)) if pairs else None,
        bootstrap=bootstrap_interval(pairs),
        student=student_interval(pairs),
    )


def student_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = student_quantile(0.975, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """95 % percentile interval of the mean over resamples of the values; None for fewer than two.

    Up to MAX_ENUMERATED values, over all n^n resamples; beyond, over NUM_RESAMPLES random ones, always the same.
    """
    n = len(values)
    if n < 2:
        return None
    if n <= MAX_ENUMERATED:
        indices_RN = np.array([*product(range(n), repeat=n)])
    else:
        indices_RN = np.random.default_rng(0).integers(0, n, (NUM_RESAMPLES, n))
    means_R = np.asarray(values, dtype=float)[indices_RN].mean(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def student_quantile(p: float, degrees: int) -> float:
    """The quantile of Student's t for p > 0.5, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < p else (low, middle)
    return high


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0 and whole degrees of freedom: the finite series of Abramowitz and Stegun, 26.7.3 and 4."""
    theta = math.atan(t / math.sqrt(degrees))
    sin, cos = math.sin(theta), math.cos(theta)
    is_odd = degrees % 2
    term, series = (cos, cos) if is_odd else (1.0, 1.0)
    if degrees == 1:
        series = 0.0
    for k in range(2 if is_odd else 1, degrees - 1, 2):
        term *= cos * cos * k / (k + 1)
        series += term
    within = 2 / math.pi * (theta + sin * series) if is_odd else sin * series  # P(|T| <= t)
    return 0.5 + within / 2


def table(summaries: Sequence[ArmSummary], *, num_seeds: int) -> str:
    """A metric's summaries as a Markdown table."""
    first = summaries[0].arm
    lines = [
        f"| arm | n of {num_seeds} | mean | 95 % interval | difference to {first} | bootstrap 95 % | Student t 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in summaries:
        difference = _number(each.difference, sign=True)
        if each.is_clear:
            difference = f"**{difference}**"
        if each.num_pairs < each.num_seeds and each.arm != first:
            difference += f" (n = {each.num_pairs})"
        cells = [each.arm, str(each.num_seeds), _number(each.mean), _interval(each.interval), difference]
        cells += [_interval(each.bootstrap, sign=True), _interval(each.student, sign=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


FOOTNOTE = """\
An interval is over seeds: it covers the luck of training, not that of choosing the held-out questions. Differences are
taken seed by seed; **bold**: both their intervals exclude 0, and they are of three seeds or more and not all equal.
The percentile bootstrap is too narrow for few seeds (with 2 or 3 it is the range of the differences, which covers the
true one in 50 % or 75 % of sweeps, with 5 seeds in about 85 %); Student's t, right for normal errors at any number of
seeds, is the one to trust there. Intervals are neither cut to a metric's range nor corrected for many comparisons."""


def draw_arms(curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """A panel per metric: per arm the mean over seeds and, behind it, their range. curves: by metric, arm and seed."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot as plt

    num_columns = min(len(curves), 2)
    num_rows = -(-len(curves) // num_columns)
    size = (6.5 * num_columns, 4.2 * num_rows)
    figure, panels = plt.subplots(num_rows, num_columns, figsize=size, squeeze=False, constrained_layout=True)
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, (metric, arms) in zip(panels.flat, curves.items(), strict=False):
        for arm, runs in arms.items():
            steps, mean, low, high = mean_and_range(runs)
            (line,) = panel.plot(steps, mean, marker="o", markersize=3, label=f"{arm} (n = {len(runs)})")
            panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=metric, xlabel="step", ylabel="mean, and range over seeds")
        panel.grid(alpha=0.3)
        if arms:
            panel.legend(fontsize=8)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
    os.replace(partial, path)


def mean_and_range(runs: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, mean, minimum and maximum over runs, at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    columns = [[run[step] for run in runs] for step in steps]
    return steps, [sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    return (
        "–" if interval is None else f"{_number(interval[0], sign=sign)} to {_number(interval[1], sign=sign)}"
    )
