"""Where a run stands: the figures that matter, the time that is left and what it has cost, from its rows of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from grpo.config.schema import Config
from grpo.run.trend_rules import Trend, warnings_of_run
from grpo.run.warning_rules import RULES

Rows = Sequence[Mapping[str, Any]]

STOPPED = "completion/stopped"
SHARES = {"flat groups": "groups/no_signal", "cut": STOPPED}
SHOWN = {"reward": "reward/mean", "length": "completion/length", "gap": "sampler/gap_mean", **SHARES}
"""The figures of every run that are shown beside its rewards and held-out scores, by what they are called there."""
WATCHED = {
    "step",
    "time/step",
    "time/eval",
    *SHOWN.values(),
    *(need for rule in RULES for need in rule.needs),
}
"""The names of the figures that a standing is made of, besides those of rewards and held-out sets."""
RECENT = 20
"""The last steps, or evaluations, whose mean time speaks of those that follow."""
SCORES = ("accuracy", "ours", "official")
"""The held-out scores that are shown where there are any: the other ones are rewards in training too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure over the steps that have it."""

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    is_share: bool = False

    @property
    def text(self) -> str:
        """The latest value as it is read fastest."""
        value = self.values[-1]
        if self.is_share:
            return f"{value:.0%}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What is to be known of a run after a step."""

    step: int
    num_steps: int
    figures: tuple[Figure, ...]
    held_out: tuple[Figure, ...]
    warnings: tuple[Trend, ...]
    step_s: float | None
    """The seconds that a step takes lately; None before the first."""
    left_s: float | None
    """The seconds until the last step's end, without those of checkpoints."""
    process_hours: float
    """The hours of the steps and evaluations so far, those before a resumption included, times the processes."""

    @property
    def line(self) -> str:
        """The step in one line."""
        shown = " ".join(f"{figure.label.replace(' ', '_')}={figure.text}" for figure in self.figures)
        times = [f"{duration(self.step_s)} a step"] if self.step_s is not None else []
        times += [f"{duration(self.left_s)} left"] if self.left_s is not None else []
        return ", ".join(filter(None, [f"step {self.step}/{self.num_steps}: {shown}".rstrip(": "), *times]))


def watched(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a row that a standing is made of: those that are finite, as `metrics.jsonl` has them."""
    return {name: value for name, value in row.items() if _is_watched(name) and math.isfinite(value)}


def _is_watched(name: str) -> bool:
    is_mean = name.startswith("rewards/") and name.endswith("/mean")
    return name in WATCHED or is_mean or name.startswith("eval/")


def standing_of(rows: Rows, config: Config, *, num_processes: int) -> Standing:
    """Return where a run stands after the last of its rows."""
    weights = {name: spec.weight for name, spec in config.rewards.items()}
    step = int(rows[-1]["step"]) if rows else 0
    (first, *others), rewards = SHOWN.items(), [(name, f"rewards/{name}/mean") for name in weights]
    figures = [_figure(rows, label, name) for label, name in (first, *rewards, *others)]
    spent_s = sum(row.get("time/step", 0.0) + row.get("time/eval", 0.0) for row in rows)
    return Standing(
        step=step,
        num_steps=config.num_steps,
        figures=tuple(figure for figure in figures if figure is not None),
        held_out=tuple(_held_out(rows)),
        warnings=tuple(warnings_of_run(rows, weights, config.rollout.group_size)),
        step_s=_recent(rows, "time/step"),
        left_s=_left_s(rows, step, config),
        process_hours=spent_s * num_processes / 3600,
    )


def held_out_scores(names: Iterable[str]) -> list[str]:
    """Return the names among a row's that are scores of answers to held-out questions, sorted."""
    held_out = sorted(name for name in names if name.startswith("eval/") and name.count("/") == 2)
    return [name for name in held_out if not name.endswith(("/lost", "/length"))]


def duration(seconds: float) -> str:
    """Return a duration with its two largest units."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _figure(rows: Rows, label: str, name: str) -> Figure | None:
    found = [(int(row["step"]), float(row[name])) for row in rows if name in row]
    if not found:
        return None
    steps, values = zip(*found, strict=True)
    # Those that are cut are what is wrong, and the row has those that are not.
    values = tuple(1 - value for value in values) if name == STOPPED else values
    return Figure(label=label, steps=steps, values=values, is_share=name in SHARES.values())


def _held_out(rows: Rows) -> list[Figure]:
    scores = held_out_scores({name for row in rows for name in row})
    chosen = [name for name in scores if name.rpartition("/")[2] in SCORES] or scores
    found = [_figure(rows, name.removeprefix("eval/").replace("/", " "), name) for name in chosen]
    return [figure for figure in found if figure is not None]


def _recent(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if name in row][-RECENT:]
    return fmean(values) if values else None


def _left_s(rows: Rows, step: int, config: Config) -> float | None:
    step_s, eval_s = _recent(rows, "time/step"), _recent(rows, "time/eval") or 0.0
    if step_s is None:
        return None
    every, last = config.eval.every_steps, config.num_steps
    due = last // every - step // every + (last % every > 0) if every and config.data.eval else 0
    return (last - step) * step_s + due * eval_s * (step < last)
