"""Statistics of an ablation: against numbers worked out by hand and published ones; the table; the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grpo.commands.sweeps.intervals import curves_of, draw_arms, student_interval, summarise, table


@pytest.mark.parametrize(
    ("degrees", "published"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_intervals_have_students_quantiles_of_the_printed_tables(degrees: int, published: float) -> None:
    n = degrees + 1
    values = [1.0, -1.0] * (n // 2) + [0.0] * (n % 2)
    deviation = math.sqrt(2 * (n // 2) / degrees)  # of a mean of 0
    assert student_interval(values) == pytest.approx(
        (-published * deviation / math.sqrt(n), published * deviation / math.sqrt(n)), rel=2e-4
    )


def test_the_interval_of_a_mean_by_hand() -> None:
    # mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1, t 4.3027 at 2 degrees: 2 +- 4.3027 / sqrt(3)
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_the_interval_of_three_seeds_covers_the_true_mean_in_95_of_100_sweeps() -> None:
    normal_TN = np.random.default_rng(0).normal(size=(2000, 3))
    intervals = [student_interval(row) for row in normal_TN.tolist()]
    assert np.mean([each is not None and each[0] <= 0 <= each[1] for each in intervals]) == pytest.approx(
        0.95, abs=0.015
    )


def test_one_value_has_no_interval() -> None:
    assert student_interval([1.0]) is None and student_interval([]) is None


VALUES = {
    "accuracy": {0: 0.10, 1: 0.20, 2: 0.30},
    "+format": {0: 0.10, 1: 0.30, 2: 0.20},  # differences 0, 0.1, -0.1
    "+keyframe": {0: 0.90, 1: 1.00, 2: 1.11},  # differences 0.8, 0.8, 0.81
}


def test_differences_are_taken_seed_by_seed() -> None:
    baseline, format_arm, keyframe = summarise(VALUES)
    assert (
        baseline.mean == pytest.approx(0.2)
        and baseline.difference is None
        and baseline.difference_interval is None
    )
    assert format_arm.difference == pytest.approx(0.0) and not format_arm.is_clear
    # Standard deviation 0.1: 0 +- 4.3027 * 0.1 / sqrt(3)
    assert format_arm.difference_interval == pytest.approx((-0.2484, 0.2484), abs=1e-3)
    # The arms' own intervals are wide, but their seeds go together: the difference is nearly the same in each
    # Standard deviation 0.005774: 0.80333 +- 4.3027 * 0.003333
    assert keyframe.difference_interval == pytest.approx((0.7890, 0.8177), abs=1e-3) and keyframe.is_clear


def test_a_difference_of_one_sign_is_not_clear_if_its_interval_holds_zero() -> None:
    values = {"a": dict.fromkeys(range(3), 0.0), "b": {0: 0.1, 1: 0.2, 2: 0.9}}
    b = summarise(values)[1]
    assert b.difference_interval is not None and b.difference_interval[0] < 0 and not b.is_clear


@pytest.mark.parametrize(
    "differences", [[0.8, 0.8, 0.8], [0.1, 0.1], [0.8, 0.81], [0.3 - 0.2, 0.2 - 0.1, 0.1, 0.1]]
)
def test_two_seeds_or_equal_differences_are_not_called_clear(differences: list[float]) -> None:
    values = {"a": dict.fromkeys(range(len(differences)), 0.0), "b": dict(enumerate(differences))}
    assert not summarise(values)[1].is_clear


def test_seeds_that_one_arm_lacks_leave_the_comparison_and_the_table_says_so() -> None:
    values = {"a": {0: 0.0, 1: 0.0, 2: 0.0}, "b": {1: 0.5, 2: 0.7}, "none": {}, "other seeds": {7: 1.0}}
    summaries = summarise(values)
    assert [each.num_pairs for each in summaries] == [0, 2, 0, 0]
    rows = table(summaries, num_seeds=3).splitlines()
    assert "n of 3" in rows[0] and "difference to a" in rows[0]
    assert rows[2] == "| a | 3 | 0.000 | 0.000 to 0.000 | – | – |"
    assert rows[3].startswith("| b | 2 | 0.600 | -0.671 to 1.871 | +0.600 | -0.671 to +1.871 |")
    assert rows[4] == "| none | 0 | – | – | – | – |"
    assert rows[5].startswith("| other seeds | 1 | 1.000 | – | – (n = 0) | – |")


def test_a_clear_difference_is_bold() -> None:
    assert "| **+0.803** |" in table(summarise(VALUES), num_seeds=3)


def points_of(curves: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]]) -> pd.DataFrame:
    """Rows of points from curves by metric, arm and seed."""
    points = [
        (arm, seed, metric, step, value)
        for metric, arms in curves.items()
        for arm, seeds in arms.items()
        for seed, curve in enumerate(seeds)
        for step, value in curve.items()
    ]
    return pd.DataFrame(points, columns=pd.Index(["arm", "seed", "metric", "step", "value"]))


def test_bands_span_the_seeds_at_the_steps_that_all_have() -> None:
    points = points_of({"score": {"a": [{0: 0.0, 10: 1.0, 20: 5.0}, {0: 0.5, 10: 0.0}], "b": [{0: 9.0}]}})
    curves = curves_of(points, "score", "a")
    assert curves.index.tolist() == [0, 10] and curves.to_numpy().tolist() == [[0.0, 0.5], [1.0, 0.0]]
    assert curves_of(points, "score", "none").empty and curves_of(points, "none", "a").empty


@pytest.mark.parametrize("num_metrics", [1, 2, 3])
def test_the_picture_has_a_panel_per_metric(num_metrics: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    arms = {"a": [{0: 0.0, 10: 0.5}, {0: 0.1, 10: 0.9}], "b": [{0: 0.2, 10: 0.1}]}
    metrics = [f"eval/heldout/{index}" for index in range(num_metrics)]
    draw_arms(
        points_of(dict.fromkeys(metrics, arms)), [*metrics, "none"], [*arms, "none"], tmp_path / "picture.png"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    height_px, width_px, _ = imread(tmp_path / "picture.png").shape
    assert (height_px, width_px) == (504 * -(-(num_metrics + 1) // 2), 1560)
