"""The scores of models between a base and a tuned one, on a benchmark like the training's and on another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from grpo.commands.export.results import read_results

ALPHA = "alpha_"


def plot(inside: Sequence[Path], outside: Sequence[Path], out: Path) -> str:
    """Draw a point for each mixing weight that both benchmarks have a score of; return what was drawn, in lines.

    Raises ValueError if there are fewer than two.
    """
    here, there = scores_by_alpha(inside), scores_by_alpha(outside)
    alphas = sorted(here.keys() & there.keys())
    if len(alphas) < 2:
        raise ValueError("fewer than two folders alpha_* have scores on both sides")
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot([there[alpha] for alpha in alphas], [here[alpha] for alpha in alphas], "o-")
    for alpha in alphas:
        axes.annotate(f"{alpha:g}", (there[alpha], here[alpha]), textcoords="offset points", xytext=(5, 5))
    axes.set(xlabel=_name(outside[0]), ylabel=_name(inside[0]), title="weights of the tuned model")
    figure.savefig(out, bbox_inches="tight", dpi=150)
    return "\n".join([*(f"{alpha:g}: {here[alpha]:.3f} {there[alpha]:.3f}" for alpha in alphas), str(out)])


def scores_by_alpha(files: Sequence[Path]) -> dict[float, float]:
    """Return the strict score of each model in a folder `alpha_SHARE`, by its share."""
    found: dict[float, float] = {}
    for file in files:
        for figures in read_results(file)["models"].values():
            name = Path(figures["path"]).name
            if name.startswith(ALPHA) and figures["score"] is not None:
                found[float(name.removeprefix(ALPHA))] = figures["score"]
    return found


def _name(file: Path) -> str:
    return read_results(file)["benchmark"]
