"""The figures of a replay: by hand, and against the plain way to compute them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from grpo.commands.replay import stats
from grpo.learner.advantages import score_groups
from rewards.hostile import make_group
from tests.support import tiny

NAN = math.nan


def matrix(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def random_groups(seed: int, *, num_values: int = 4) -> np.ndarray:
    """Groups of up to six with many ties, some values missing and some groups flat or empty."""
    rng = np.random.default_rng(seed)
    values_PG = rng.integers(0, num_values, (60, 6)).astype(float)
    values_PG[rng.random(values_PG.shape) < 0.2] = NAN
    values_PG[0], values_PG[1] = NAN, 0.2
    return values_PG


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("baseline", ["mean", "loo"])
@pytest.mark.parametrize("scale", ["group_std", "batch", "none", "normalised"])
def test_advantages_are_those_of_the_training(scale: Any, baseline: Any, mask_truncated: bool) -> None:
    totals_PG, steps_P = random_groups(0) * 0.7, np.arange(60) // 25
    stopped_PG = np.random.default_rng(1).random(totals_PG.shape) < 0.7
    normalised = scale == "normalised"
    learning = stats.Learning(
        scale="none" if normalised else scale,
        baseline=baseline,
        normalised=normalised,
        mask_truncated=mask_truncated,
    )
    steps = [(totals_PG[steps_P == step], stopped_PG[steps_P == step]) for step in range(3)]
    expected = np.concatenate([trained(totals, stopped, learning) for totals, stopped in steps])
    found = stats.advantages_of(totals_PG, steps_P, stopped_PG.astype(float), learning)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert (found[1][~np.isnan(found[1])] == 0).all()


def trained(totals_PG: np.ndarray, stopped_PG: np.ndarray, learning: stats.Learning) -> np.ndarray:
    """The advantages of one step, as the trainer computes them."""
    groups, tables = [], []
    for totals, stopped in zip(totals_PG.tolist(), stopped_PG.tolist(), strict=True):
        group = make_group(["x"] * len(totals), tiny.sample("s"))
        rollouts = [replace(each, stopped=s) for each, s in zip(group.rollouts, stopped, strict=True)]
        groups.append(replace(group, rollouts=tuple(rollouts)))
        known = tuple(None if math.isnan(total) else total for total in totals)
        tables.append(tiny.table(known))
    scored = score_groups(
        groups,
        tables,
        scale=learning.scale,
        baseline=learning.baseline,
        normalised=learning.normalised,
        mask_truncated=learning.mask_truncated,
    )
    return np.array([[NAN if value is None else value for value in each.advantages] for each in scored])


def test_a_group_is_flat_if_its_values_are_equal_or_missing() -> None:
    values = matrix([1, 1, NAN], [NAN, NAN, NAN], [0.2, 0.2, 0.2], [1, 1, 1.1])
    assert stats.flat_groups(values).tolist() == [True, True, True, False]


def test_kendalls_tau_by_hand() -> None:
    # 1 2 3 against 1 3 2: two pairs agree, one doesn't: 1/3. 1 1 2 against 1 2 3: the tied pair counts for neither;
    # 2 / sqrt(2 * 3). Then a flat group, and one of which a single pair is known.
    a = matrix([1, 2, 3], [1, 1, 2], [5, 5, 5], [1, 2, NAN])
    b = matrix([1, 3, 2], [1, 2, 3], [1, 2, 3], [2, 1, 9])
    assert stats.kendall_taus(a, b) == pytest.approx([1 / 3, 2 / math.sqrt(6), NAN, -1], nan_ok=True)


def test_kendalls_tau_is_that_of_counted_pairs() -> None:
    # 1200 groups: more than are done at once.
    a, b = (np.tile(random_groups(seed), (20, 1)) for seed in (1, 2))
    expected = [plain_tau(*rows) for rows in zip(a, b, strict=True)]
    assert stats.kendall_taus(a, b) == pytest.approx(expected, nan_ok=True)


def plain_tau(a: np.ndarray, b: np.ndarray) -> float:
    known = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x + y)]
    signs = [(np.sign(p[0] - q[0]), np.sign(p[1] - q[1])) for p, q in combinations(known, 2)]
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / math.sqrt(untied) if untied else NAN


def test_correlation_inside_groups_ignores_what_differs_between_them() -> None:
    a, b = matrix([0, 1], [10, 11]), matrix([1, 0], [11, 10])
    assert stats.correlation(a, b, within=True) == pytest.approx(-1)
    assert stats.correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_correlation_takes_the_completions_that_have_both_values() -> None:
    a, b = random_groups(3), random_groups(4)
    known = ~np.isnan(a + b)
    assert stats.correlation(a, b) == pytest.approx(np.corrcoef(a[known], b[known])[0, 1])


@pytest.mark.parametrize("within", [True, False])
def test_there_is_no_correlation_with_what_never_varies(within: bool) -> None:
    constant = np.full((2, 3), 0.1)
    assert stats.correlation(constant, matrix([1, 2, 3], [4, 5, 6]), within=within) is None
    assert stats.correlation(np.full((2, 3), NAN), constant, within=within) is None


def test_the_best_has_changed_if_no_best_completion_is_best_again() -> None:
    a = matrix([1, 0, 0], [1, 1, 0], [0, 1, 0], [NAN, 1, 0])
    b = matrix([0, 1, 0], [0, 1, 1], [0, 1, NAN], [9, 1, 2])
    assert stats.best_changed(a, b).tolist() == [True, False, False, True]


def test_ranking_by_hand() -> None:
    before = matrix([1, 0], [1, 0], [0, 0])
    after = matrix([0, 1], [3, 0], [1, 0])
    plain, stopped = stats.Learning(scale="none"), np.ones_like(before)
    advantages = [stats.advantages_of(totals, np.zeros(3), stopped, plain) for totals in (before, after)]
    # Before: 0.5 -0.5, 0.5 -0.5, 0 0. After: -0.5 0.5, 1.5 -1.5, 0.5 -0.5. The third group was flat.
    found = stats.ranking(before, after, *advantages)
    assert found["groups_compared"] == 2 and found["kendall_tau"] == 0 and found["best_changed_frac"] == 0.5
    assert found["mean_abs_change"] == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0.5) / 6)
    assert found["turned_up_frac"] == found["turned_down_frac"] == pytest.approx(2 / 6)
    assert found["sign_changed_frac"] == pytest.approx(4 / 6)


def test_the_shares_of_a_step_add_up_to_one() -> None:
    advantages = matrix([1, -1, NAN], [3, -1, -2], [2, -2, 0], [0, 0, 0])
    shares = stats.shares_of_step(advantages, np.array([7, 7, 9, 8]))
    assert shares == pytest.approx(matrix([0.25, 0, NAN], [0.75, 0, 0], [1, 0, 0], [0, 0, 0]), nan_ok=True)


def test_where_the_advantage_goes_by_hand() -> None:
    run, now = matrix([1, -1], [2, -2]), matrix([1, -1], [-1, 1])
    left = np.array([[True, False], [True, False]])
    rows = stats.bucket_rows([("side", "left", left), ("side", "none", left & False)], run, now)
    assert [row["bucket"] for row in rows] == ["left"]  # the other one has no completions
    assert (rows[0]["num"], rows[0]["share_of_completions"]) == (2, 0.5)
    assert (rows[0]["run_share"], rows[0]["replay_share"], rows[0]["mean_advantage"]) == (1.0, 0.5, 0.0)


def test_the_highest_are_found_in_order_and_only_above_the_limit() -> None:
    values = matrix([0.5, NAN, 2], [2, -1, 0])
    assert stats.highest(values, 9) == [(0, 2), (1, 0), (0, 0)]
    assert stats.highest(values, 1) == [(0, 2)] and stats.highest(values, 9, above=1) == [(0, 2), (1, 0)]


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [0.1, 0.1], [1.7e308, -1.7e308], [5e-324, 0.0], [1e16, 1e16 + 2], [NAN, NAN], [NAN, 3.0]],
)
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    shares = stats.histograms({"x": matrix(values)})["shares"]["x"]
    assert len(shares) == stats.NUM_BINS
    assert sum(shares) == pytest.approx(float(any(not math.isnan(value) for value in values)))


def test_a_distribution_of_nothing_says_so() -> None:
    assert stats.distribution(matrix([NAN]))["mean"] is None
    found = stats.distribution(matrix([1, 2, NAN, 6]))
    assert (found["num"], found["mean"], found["median"], found["max"]) == (3, 3, 2, 6)
