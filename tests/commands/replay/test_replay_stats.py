"""The figures of a replay: by hand, and against the plain way to compute them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from grpo.commands.replay import report
from grpo.commands.replay.table import advantages
from grpo.learner.advantages import advantages_of, score_groups
from rewards.hostile import make_group
from tests.support import tiny

NAN = math.nan

Groups = Sequence[Sequence[float]]


def column(*groups: Sequence[float]) -> pd.Series:
    """Values of completions, group by group."""
    return pd.Series([value for group in groups for value in group], dtype=float)


def groups_of(*groups: Sequence[float]) -> pd.Series:
    """The number of each completion's group."""
    return pd.Series([number for number, group in enumerate(groups) for _ in group])


def random_groups(seed: int, *, num_values: int = 4) -> list[list[float]]:
    """Groups of up to six with many ties, some values missing and some groups flat or empty."""
    rng = np.random.default_rng(seed)
    values_PG = rng.integers(0, num_values, (60, 6)).astype(float)
    values_PG[rng.random(values_PG.shape) < 0.2] = NAN
    values_PG[0], values_PG[1] = NAN, 0.2
    return values_PG.tolist()


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("baseline", ["mean", "loo"])
@pytest.mark.parametrize("scale", ["group_std", "batch", "none", "normalised"])
def test_advantages_are_those_of_the_training(scale: Any, baseline: Any, mask_truncated: bool) -> None:
    totals_PG, steps_P = np.array(random_groups(0)) * 0.7, np.arange(60) // 25
    stopped_PG = np.random.default_rng(1).random(totals_PG.shape) < 0.7
    normalised = scale == "normalised"
    settings = {
        "scale": "none" if normalised else scale,
        "baseline": baseline,
        "min_std": 0.0,
        "normalised": normalised,
        "mask_truncated": mask_truncated,
    }
    to_advantages = partial(advantages_of, **settings)
    completions = pd.DataFrame(
        {
            "step": np.repeat(steps_P, 6),
            "group": np.repeat(np.arange(60), 6),
            "rollout": np.tile(np.arange(6), 60),
            "total": totals_PG.ravel(),
            "stopped": stopped_PG.ravel().astype(float),
        }
    )
    steps = [(totals_PG[steps_P == step], stopped_PG[steps_P == step]) for step in range(3)]
    expected = np.concatenate([trained(totals, stopped, settings) for totals, stopped in steps])
    found = advantages(completions, to_advantages)
    assert np.allclose(found, expected.ravel(), rtol=1e-12, atol=1e-12, equal_nan=True)
    assert (found[6:12].dropna() == 0).all()
    # A smaller group is as one whose other totals are missing.
    is_there = ~((completions["group"] % 7 == 3) & (completions["rollout"] >= 4))
    missing = completions.assign(total=completions["total"].where(is_there))
    assert advantages(completions[is_there], to_advantages).equals(
        advantages(missing, to_advantages)[is_there]
    )


def trained(totals_PG: np.ndarray, stopped_PG: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The advantages of one step, as the trainer computes them."""
    groups, tables = [], []
    for totals, stopped in zip(totals_PG.tolist(), stopped_PG.tolist(), strict=True):
        group = make_group(["x"] * len(totals), tiny.sample("s"))
        rollouts = [replace(each, stopped=s) for each, s in zip(group.rollouts, stopped, strict=True)]
        groups.append(replace(group, rollouts=tuple(rollouts)))
        known = tuple(None if math.isnan(total) else total for total in totals)
        tables.append(tiny.table(known))
    scored = score_groups(groups, tables, **settings)
    return np.array([[NAN if value is None else value for value in each.advantages] for each in scored])


def test_a_group_is_flat_if_its_values_are_equal_or_missing() -> None:
    groups = [1, 1, NAN], [NAN, NAN, NAN], [0.3, 0.3, 0.1 + 0.2], [1, 1, 1.1]
    assert report.is_flat(column(*groups), groups_of(*groups)).tolist() == [True, True, True, False]


def taus(a: Groups, b: Groups) -> list[float]:
    return report.kendall_taus(column(*a), column(*b), groups_of(*a)).tolist()


def test_kendalls_tau_by_hand() -> None:
    # 1 2 3 against 1 3 2: two pairs agree, one doesn't: 1/3. 1 1 2 against 1 2 3: the tied pair counts for neither;
    # 2 / sqrt(2 * 3). Then a flat group, one with a single pair of known ones, and one without any pair.
    a = [[1, 2, 3], [1, 1, 2], [5, 5, 5], [1, 2, NAN], [1, NAN, NAN]]
    b = [[1, 3, 2], [1, 2, 3], [1, 2, 3], [2, 1, 9], [1, 2, 3]]
    assert taus(a, b) == pytest.approx([1 / 3, 2 / math.sqrt(6), NAN, -1, NAN], nan_ok=True)


def test_kendalls_tau_is_scipys() -> None:
    a, b = random_groups(1), random_groups(2)
    known = [
        [pair for pair in zip(*rows, strict=True) if not math.isnan(sum(pair))]
        for rows in zip(a, b, strict=True)
    ]
    expected = [
        kendalltau(*zip(*pairs, strict=True))[0] if len(pairs) > 1 else NAN for pairs in known if pairs
    ]
    assert len(expected) > 50 and taus(a, b) == pytest.approx(expected, nan_ok=True)


def correlation(a: Groups, b: Groups, *, within: bool = False) -> float:
    columns = pd.DataFrame({"a": column(*a), "b": column(*b)})
    (_, between), (again, _) = report.correlations(columns, groups_of(*a) if within else None)
    assert between == pytest.approx(again, abs=0, nan_ok=True)
    return between


def test_correlation_inside_groups_ignores_what_differs_between_them() -> None:
    a, b = [[0, 1], [10, 11]], [[1, 0], [11, 10]]
    assert correlation(a, b, within=True) == pytest.approx(-1)
    assert correlation(a, b) == pytest.approx(np.corrcoef(column(*a), column(*b))[0, 1])


def test_correlation_takes_the_completions_that_have_both_values() -> None:
    a, b = random_groups(3), random_groups(4)
    known = column(*a).notna() & column(*b).notna()
    expected = np.corrcoef(column(*a)[known], column(*b)[known])[0, 1]
    assert correlation(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("within", [True, False])
def test_there_is_no_correlation_with_what_never_varies(within: bool) -> None:
    # Neither 0.1 nor its rounded means: those of three and of seven are on different sides of it.
    constant, missing, varied = (
        [[0.1] * 3, [0.1] * 7],
        [[NAN] * 3, [NAN] * 7],
        [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1]],
    )
    assert math.isnan(correlation(constant, varied, within=within))
    assert math.isnan(correlation(missing, constant, within=within))


def test_the_best_has_changed_if_no_best_completion_is_best_again() -> None:
    a = [1, 0, 0], [1, 1, 0], [0, 1, 0], [NAN, 1, 0], [NAN, NAN, 1]
    b = [0, 1, 0], [0, 1, 1], [0, 1, NAN], [9, 1, 2], [1, 1, NAN]
    found = report.best_changed(column(*a), column(*b), groups_of(*a))
    assert found.tolist() == [True, False, False, True, True]


def test_ranking_by_hand() -> None:
    before, after = ([1, 0], [1, 0], [0, 0]), ([0, 1], [3, 0], [1, 0])
    completions = pd.DataFrame(
        {"step": 1, "group": groups_of(*before), "rollout": [0, 1] * 3, "stopped": 1.0}
        | {"run_total": column(*before), "total": column(*after)}
    )
    plain = partial(
        advantages_of, scale="none", baseline="mean", min_std=0.0, normalised=False, mask_truncated=False
    )
    completions["run_advantage"] = advantages(completions.assign(total=completions["run_total"]), plain)
    completions["advantage"] = advantages(completions, plain)
    # Before: 0.5 -0.5, 0.5 -0.5, 0 0. After: -0.5 0.5, 1.5 -1.5, 0.5 -0.5. The third group was flat.
    found = report.ranking(completions)
    assert found["groups_compared"] == 2 and found["kendall_tau"] == 0 and found["best_changed_frac"] == 0.5
    assert found["mean_abs_change"] == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0.5) / 6)
    assert found["turned_up_frac"] == found["turned_down_frac"] == pytest.approx(2 / 6)
    assert found["sign_changed_frac"] == pytest.approx(4 / 6)


def test_the_shares_of_a_step_add_up_to_one() -> None:
    found = report.shares_of_step(
        column([1, -1, NAN], [3, -1, -2], [2, -2, 0], [0, 0, 0]), column([7] * 6, [9] * 3, [8] * 3)
    )
    expected = [0.25, 0, NAN, 0.75, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_where_the_advantage_goes_by_hand() -> None:
    run, now = column([1, -1], [2, -2]), column([1, -1], [-1, 1])
    sides = pd.Series(pd.Categorical(["left", None, "left", None], categories=["left", "none"]))
    (left,) = report.where(sides, run, now)  # the other one has no completions
    assert (left["bucket"], left["num"], left["share_of_completions"]) == ("left", 2, 0.5)
    assert (left["run_share"], left["replay_share"], left["mean_advantage"]) == (1.0, 0.5, 0.0)


def test_a_kind_of_completions_without_advantages_is_left_out() -> None:
    kinds = pd.Series(["with", "without", "with"])
    (row,) = report.where(kinds, column([1, 1, -2]), column([1, NAN, -1]))
    assert (row["bucket"], row["num"], row["share_of_completions"], row["run_share"]) == ("with", 2, 1.0, 0.5)
    assert math.isnan(report.where(kinds, column([0, 0, 0]), column([0, 0, 0]))[0]["replay_share"])


def test_the_highest_are_found_in_order_and_only_above_zero() -> None:
    assert report.highest(column([0.5, NAN, 2], [2, -1, 0])) == [2, 3, 0]
    assert len(report.highest(column([1.0] * 99))) == report.NUM_EXAMPLES


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [0.1, 0.1], [1.7e308, -1.7e308], [5e-324, 0.0], [1e16, 1e16 + 2], [NAN, NAN], [NAN, 3.0]],
)
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    shares = report.histograms({"x": column(values)})["shares"]["x"]
    assert len(shares) == report.NUM_BINS
    assert sum(shares) == pytest.approx(float(any(not math.isnan(value) for value in values)))


def test_a_distribution_of_nothing_says_so() -> None:
    assert report.plain(report.distribution(column([NAN])))["mean"] is None
    found = report.distribution(column([1, 2, NAN, 6]))
    assert (found["num"], found["mean"], found["median"], found["max"]) == (3, 3, 2, 6)
    assert found["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 3))
