"""A run in a few lines of text: where it stands, what its rules warn of, and how its figures have moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo.config.load import read_config
from grpo.run.folder import RunDir, check_is_run
from grpo.run.standing import held_out_scores
from grpo.run.trend_rules import warnings_of_run

SPAN = 10
"""The most values at either end of a run over which a figure's mean is taken."""
FIGURES = (
    "reward/mean", "reward/std", "completion/length", "completion/stopped", "groups/no_signal", "policy/entropy",
    "policy/kl", "sampler/gap_mean", "optim/grad_norm", "time/step",
)  # fmt: skip
"""The figures that are shown of every run, beside its rewards and held-out scores."""


def text_of(folder: Path) -> str:
    """Return the lines about the run in a folder. ValueError if it is no run's folder."""
    run = RunDir(folder)
    check_is_run(folder)
    config, rows = read_config(run.config_file), run.metrics()
    last = max((int(row["step"]) for row in rows), default=0)
    weights = {name: spec.weight for name, spec in config.rewards.items()}
    found = warnings_of_run(rows, weights, config.rollout.group_size)
    warnings = [f"warning: {trend.text}" for trend in found]
    return "\n".join([f"{folder}: step {last} of {config.num_steps}", *warnings, *_table(rows), ""])


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each figure: its mean over the first steps and over the last ones."""
    found = {name: [row[name] for row in rows if name in row] for name in _names(rows)}
    lines = [(name, *_ends(values)) for name, values in found.items() if len(values) > 1]
    width = max((len(name) for name, *_ in lines), default=0)
    head = [f"{'mean of':{width}}  {'first':>9}  {'latest':>9}"] if lines else []
    return head + [f"{name:{width}}  {first:9.4g}  {latest:9.4g}" for name, first, latest in lines]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last values, of at most half of all."""
    span = min(SPAN, len(values) // 2)
    return fmean(values[:span]), fmean(values[-span:])


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    names = {name for row in rows for name in row}
    rewards = sorted(name for name in names if name.startswith("rewards/") and name.endswith("/mean"))
    ordered = (*FIGURES[:2], *rewards, *held_out_scores(names), *FIGURES[2:])
    return [name for name in ordered if name in names]
