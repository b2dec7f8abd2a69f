"""What an ablation shows: figures per arm with intervals over seeds, as a table and as curves. Pure functions.

What the intervals say, and what not. The unit is a seed: a run of an arm is one observation, and all runs answer the
same held-out questions, so an interval covers the luck of training and not that of choosing the questions.

A difference to the first arm is taken seed by seed (same seed: same order of data). All intervals are Student's t at
95 %, which is right at any number of seeds if the errors are normal. Resampling the seeds would not do: the percentile
bootstrap of three differences is their range, which covers the true difference in 75 % of sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

# The quantile of Student's t; scipy.stats takes a second to import.
from scipy.special import stdtrit

from grpo.run.disk import whole_file

Interval = tuple[float, float]


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
    difference_interval: Interval | None

    @property
    def is_clear(self) -> bool:
        """The interval of the difference excludes 0, from three pairs or more that are not all equal.

        Equal differences are what a metric with few values gives by chance (of two pairs, in one sweep of nine where
        there is nothing to find), and their interval has no width.
        """
        if self.num_pairs < 3 or self.difference_interval is None:
            return False
        low, high = self.difference_interval
        return high - low > 1e-9 * abs(low) and (low > 0 or high < 0)


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
        difference_interval=student_interval(pairs),
    )


def student_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def table(summaries: Sequence[ArmSummary], *, num_seeds: int) -> str:
    """A metric's summaries as a Markdown table."""
    first = summaries[0].arm
    lines = [
        f"| arm | n of {num_seeds} | mean | 95 % interval | difference to {first} | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in summaries:
        difference = _number(each.difference, sign=True)
        if each.is_clear:
            difference = f"**{difference}**"
        if each.num_pairs < each.num_seeds and each.arm != first:
            difference += f" (n = {each.num_pairs})"
        cells = [each.arm, str(each.num_seeds), _number(each.mean), _interval(each.interval), difference]
        cells.append(_interval(each.difference_interval, sign=True))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


FOOTNOTE = """\
An interval is over seeds: it covers the luck of training, not that of choosing the held-out questions. Differences are
taken seed by seed; **bold**: their interval excludes 0, and they are of three seeds or more and not all equal. The
intervals are Student's t, right for normal errors, and neither cut to a metric's range nor corrected for many
comparisons."""


def draw_arms(points: pd.DataFrame, metrics: Sequence[str], arms: Sequence[str], path: Path) -> None:
    """A panel per metric: per arm the mean over seeds and, behind it, their range, at the steps that all have.

    points: a row for each arm, seed, metric and step, with the value.
    """
    import matplotlib

    # No screen needed.
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    num_columns = min(len(metrics), 2)
    num_rows = -(-len(metrics) // num_columns)
    size = (6.5 * num_columns, 4.2 * num_rows)
    figure, panels = plt.subplots(num_rows, num_columns, figsize=size, squeeze=False, constrained_layout=True)
    for panel in panels.flat[len(metrics) :]:
        panel.set_axis_off()
    for panel, metric in zip(panels.flat, metrics, strict=False):
        for arm in arms:
            curves = curves_of(points, metric, arm)
            mean, num_seeds = curves.mean(axis=1), curves.shape[1]
            (line,) = panel.plot(mean, marker="o", markersize=3, label=f"{arm} (n = {num_seeds})")
            low, high = curves.min(axis=1), curves.max(axis=1)
            panel.fill_between(curves.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=metric, xlabel="step", ylabel="mean, and range over seeds")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)


def curves_of(points: pd.DataFrame, metric: str, arm: str) -> pd.DataFrame:
    """The curves of an arm: a column for each seed, rows by the steps that all of them have."""
    own = points[(points["metric"] == metric) & (points["arm"] == arm)]
    return own.pivot(index="step", columns="seed", values="value").dropna()


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    return (
        "–" if interval is None else f"{_number(interval[0], sign=sign)} to {_number(interval[1], sign=sign)}"
    )
