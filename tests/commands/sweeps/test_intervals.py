"""Statistics of an ablation: against numbers worked out by hand and published ones; the table; the picture."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from grpo.commands.sweeps.intervals import (
    bootstrap_interval,
    draw_arms,
    mean_and_range,
    student_cdf,
    student_interval,
    student_quantile,
    summarise,
    table,
)


@pytest.mark.parametrize(
    ("degrees", "published"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_students_quantiles_are_those_of_the_printed_tables(degrees: int, published: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(published, abs=5e-4)


def test_students_distribution_with_one_and_two_degrees_is_the_closed_form() -> None:
    assert student_cdf(1.0, 1) == pytest.approx(0.75)  # Cauchy: 1/2 + atan(1) / pi
    assert student_cdf(2.0, 2) == pytest.approx(
        0.5 + 2 / (2 * math.sqrt(2 + 4))
    )  # 1/2 + t / (2 sqrt(2 + t^2))


def test_the_interval_of_a_mean_by_hand() -> None:
    # mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1, t 4.3027 at 2 degrees: 2 +- 4.3027 / sqrt(3)
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_the_bootstrap_of_three_differences_is_their_range() -> None:
    # 1 of 27 resamples is three times the smallest: 3.7 % of them, more than 2.5 %
    assert bootstrap_interval([0.5, 0.1, 0.2]) == pytest.approx((0.1, 0.5))


def test_the_bootstrap_of_four_differences_by_hand() -> None:
    # 2.5 % of 256 resamples are 6.4, so the 7th smallest mean. The smallest are 0000 (1 way), then three 0s
    # and a 1 (4 ways: mean 0.25), then three 0s and a 2 (4 ways) beside two of each of 0 and 1 (6 ways): mean 0.5
    low, high = bootstrap_interval([0.0, 1.0, 2.0, 3.0]) or (None, None)
    assert (low, high) == (0.5, 2.5)  # and the same from above


def test_many_seeds_are_resampled_at_random_but_always_alike() -> None:
    values = [float(value) for value in range(12)]
    first = bootstrap_interval(values)
    assert first == bootstrap_interval(values) and first is not None
    # A normal bootstrap: 5.5 +- 1.96 * population standard deviation 3.452 / sqrt(12)
    assert first == pytest.approx((5.5 - 1.953, 5.5 + 1.953), abs=0.1)


def test_the_stated_coverage_of_the_bootstrap_with_three_seeds_is_true() -> None:
    """75 %, as the module says: a symmetric error falls three times on one side with a chance of 1/4."""
    assert sum(len(set(signs)) == 2 for signs in product("+-", repeat=3)) / 8 == 0.75
    normal_TN = np.random.default_rng(0).normal(size=(2000, 3))
    intervals = [bootstrap_interval(row) for row in normal_TN.tolist()]
    covered = np.mean([each is not None and each[0] <= 0 <= each[1] for each in intervals])
    assert covered == pytest.approx(0.75, abs=0.03)
    students = [student_interval(row) for row in normal_TN.tolist()]
    assert np.mean([s is not None and s[0] <= 0 <= s[1] for s in students]) == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval() -> None:
    assert (
        student_interval([1.0]) is None
        and bootstrap_interval([1.0]) is None
        and bootstrap_interval([]) is None
    )


VALUES = {
    "accuracy": {0: 0.10, 1: 0.20, 2: 0.30},
    "+format": {0: 0.10, 1: 0.30, 2: 0.20},  # differences 0, 0.1, -0.1
    "+keyframe": {0: 0.90, 1: 1.00, 2: 1.11},  # differences 0.8, 0.8, 0.81
}


def test_differences_are_taken_seed_by_seed() -> None:
    baseline, format_arm, keyframe = summarise(VALUES)
    assert baseline.mean == pytest.approx(0.2) and baseline.difference is None and baseline.bootstrap is None
    assert format_arm.difference == pytest.approx(0.0) and not format_arm.is_clear
    assert format_arm.bootstrap == pytest.approx((-0.1, 0.1))
    # The arms' own intervals are wide, but their seeds go together: the difference is nearly the same in each
    assert keyframe.bootstrap == pytest.approx((0.8, 0.81)) and keyframe.is_clear


def test_a_difference_is_clear_only_if_students_interval_agrees() -> None:
    values = {"a": dict.fromkeys(range(3), 0.0), "b": {0: 0.1, 1: 0.2, 2: 0.9}}
    b = summarise(values)[1]
    assert b.bootstrap == pytest.approx((0.1, 0.9))  # excludes 0
    assert b.student is not None and b.student[0] < 0 and not b.is_clear


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
    assert rows[2] == "| a | 3 | 0.000 | 0.000 to 0.000 | – | – | – |"
    assert rows[3].startswith("| b | 2 | 0.600 | -0.671 to 1.871 | +0.600 | +0.500 to +0.700 |")
    assert rows[4] == "| none | 0 | – | – | – | – | – |"
    assert rows[5].startswith("| other seeds | 1 | 1.000 | – | – (n = 0) |")


def test_a_clear_difference_is_bold() -> None:
    assert "| **+0.803** |" in table(summarise(VALUES), num_seeds=3)


def test_bands_span_the_seeds_at_the_steps_that_all_have() -> None:
    runs = [{0: 0.0, 10: 1.0, 20: 5.0}, {0: 0.5, 10: 0.0}]
    assert mean_and_range(runs) == ([0, 10], [0.25, 0.5], [0.0, 0.0], [0.5, 1.0])


@pytest.mark.parametrize("num_metrics", [1, 2, 3])
def test_the_picture_has_a_panel_per_metric(num_metrics: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    arms = {"a": [{0: 0.0, 10: 0.5}, {0: 0.1, 10: 0.9}], "b": [{0: 0.2, 10: 0.1}]}
    curves = {f"eval/heldout/{index}": arms for index in range(num_metrics)}
    draw_arms({**curves, "none": {}}, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    height_px, width_px, _ = imread(tmp_path / "picture.png").shape
    assert (height_px, width_px) == (504 * -(-(num_metrics + 1) // 2), 1560)
