"""The picture of a run: two panels, a line for every reward and for every held-out score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from grpo.run.curves import draw_curves

ROWS = [
    {"step": 0, "eval/heldout/accuracy": 0.25, "eval/heldout/sampled/accuracy": 0.2, "eval/heldout/length": 12.0,
     "eval/heldout/lost": 0.0, "eval/reward_failures": 0.0},
    {"step": 1, "rewards/accuracy/mean": 0.3, "rewards/format/mean": 0.1, "rewards/accuracy/failed": 0.0,
     "reward/mean": 0.4},
    {"step": 2, "rewards/accuracy/mean": 0.6, "reward/mean": 0.6, "eval/heldout/accuracy": 0.75},
]  # fmt: skip
"""At step 2 the reward for the format abstains; the sampled score was taken once."""


@pytest.fixture
def panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Axes]:
    closed = []
    monkeypatch.setattr(plt, "close", closed.append)
    draw_curves(ROWS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = closed
    monkeypatch.undo()
    plt.close(figure)
    return figure.axes


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (points(line, 0), points(line, 1)) for line in axes.lines}


def points(line: Line2D, axis: int) -> list[float]:
    return np.asarray(line.get_data()[axis], dtype=float).tolist()


def test_one_panel_has_the_rewards_and_the_other_the_held_out_scores(panels: Sequence[Axes]) -> None:
    left, right = panels
    assert lines(left) == {"accuracy": ([1, 2], [0.3, 0.6]), "format": ([1], [0.1])}
    assert lines(right) == {
        "heldout/accuracy": ([0, 2], [0.25, 0.75]),
        "heldout/sampled/accuracy": ([0], [0.2]),
    }
    assert [axes.get_xlabel() for axes in panels] == ["step", "step"]
    assert all(axes.get_legend() is not None for axes in panels)


def test_a_score_has_its_rewards_colour_and_sampled_ones_are_dashed(panels: Sequence[Axes]) -> None:
    (accuracy, formatted), held_out = ([to_hex(line.get_color()) for line in axes.lines] for axes in panels)
    assert held_out == [accuracy, accuracy] and accuracy != formatted
    assert [line.get_linestyle() for line in panels[1].lines] == ["-", "--"]


def test_a_run_without_held_out_questions_has_its_picture(tmp_path: Path) -> None:
    draw_curves(ROWS[1:2], tmp_path / "curves.png")
    draw_curves([], tmp_path / "empty.png")
    assert (tmp_path / "curves.png").exists() and (tmp_path / "empty.png").exists()
