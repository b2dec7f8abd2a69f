"""The curves of a run in one picture: rewards over steps, and held-out scores over steps."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

# No screen needed.
matplotlib.use("Agg")

DRAWN = ("step", "rewards/", "eval/")
"""How the names of the figures begin that are drawn."""

MANY_LINES = 8
"""The number of lines above which the legend stands beside the panel."""


def draw_curves(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw two panels from the rows of `metrics.jsonl`; held-out scores are dashed if sampled, solid if greedy."""
    # The other figures of a long run, all at once, would be much of its memory.
    rows = [{key: row[key] for key in row if key.startswith(DRAWN)} for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), constrained_layout=True)
    for axes in (left, right):
        axes.set_prop_cycle(color=[*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors])  # pyright: ignore
    colours: dict[str, str] = {}
    for key in keys(rows, prefix="rewards/", suffix="/mean"):
        name = key.removeprefix("rewards/").removesuffix("/mean")
        colours[name] = line(left, rows, key, label=name)
    _finish(left, "Rewards of the training rollouts", "mean reward")
    for key in keys(rows, prefix="eval/", suffix=""):
        if key.endswith(("/length", "/lost")) or key == "eval/reward_failures":
            continue
        style, colour = ("--" if "/sampled/" in key else "-"), colours.get(key.rpartition("/")[2])
        line(right, rows, key, label=key.removeprefix("eval/"), style=style, marker="o", colour=colour)
    _finish(right, "Held-out questions", "mean score")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    # A figure is full of cycles: megabytes of them would wait for the next collection of all objects, which is rare.
    del figure, axes, left, right
    gc.collect()


def keys(rows: Sequence[Mapping[str, Any]], *, prefix: str, suffix: str) -> list[str]:
    """Return the figures of any row whose names begin and end so."""
    return sorted({key for row in rows for key in row if key.startswith(prefix) and key.endswith(suffix)})


def line(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    *,
    label: str,
    style: str = "-",
    marker: str = "",
    colour: str | None = None,
) -> str:
    """Draw one figure over the steps that have it, and return its colour."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = zip(*points, strict=True)
    (drawn,) = axes.plot(steps, values, style, marker=marker, markersize=3, label=label, color=colour)
    return to_hex(drawn.get_color())


def _finish(axes: Axes, title: str, ylabel: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.02), max(high, 1.02))
    axes.grid(alpha=0.3)
    if len(axes.lines) > MANY_LINES:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif axes.lines:
        axes.legend(fontsize=8)
