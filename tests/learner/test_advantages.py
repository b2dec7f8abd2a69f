"""Group-relative advantages against numbers worked out by hand and against numpy."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from grpo.learner.advantages import Moments, as_totals, batch_advantages, group_advantages, score_groups
from rewards.hostile import make_group
from rewards.scoring.compose import parts_of
from rewards.scoring.specs import RewardSpec
from tests.support import tiny


def in_groups(values: Any, **settings: Any) -> np.ndarray:
    """The advantages of groups that are a batch; NaN where there is none."""
    totals_PG = as_totals(values)
    batch = Moments(totals_PG.mean(), totals_PG.std())
    return group_advantages(totals_PG, batch=batch, **settings).filled(np.nan)


def in_batch(values: Any) -> np.ndarray:
    totals_PG = as_totals(values)
    return batch_advantages(totals_PG, batch=Moments(totals_PG.mean(), totals_PG.std())).filled(np.nan)


def test_a_group_by_hand() -> None:
    # totals 1, 0, 0, 1: mean 0.5, population std 0.5 -> (1 - 0.5) / (0.5 + 1e-4) = 0.99980
    found = in_groups([[1.0, 0.0, 0.0, 1.0]], scale="group_std")
    assert found[0].tolist() == pytest.approx([0.99980, -0.99980, -0.99980, 0.99980], abs=1e-5)


def test_without_scaling_an_advantage_is_the_distance_from_the_mean() -> None:
    assert in_groups([[2.0, 0.5, 0.5]], scale="none")[0].tolist() == pytest.approx([1.0, -0.5, -0.5])


@pytest.mark.parametrize("total", [0.1, 0.2, 1.2, 0.1 + 0.2, 1e6])
@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize("missing", [0, 2])
def test_a_flat_group_gets_exact_zeros(total: float, size: int, missing: int) -> None:
    found = in_groups([[total] * size + [None] * missing], scale="group_std")
    assert found[0, :size].tolist() == [0.0] * size and np.isnan(found[0, size:]).all()


@pytest.mark.parametrize("scale", ["none", "group_std", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "loo"])
def test_a_group_that_differs_by_rounding_is_flat(scale: Any, baseline: Any) -> None:
    # 0.1 + 0.2 is 0.30000000000000004; the other group is really apart, if little.
    found = in_groups(
        [[0.1 + 0.2, 0.3, 0.3, None], [1.0, 1.0, 1.0 + 1e-9, None]], scale=scale, baseline=baseline
    )
    assert found[0, :3].tolist() == [0.0] * 3
    assert found[1, 2] > 0 > found[1, 0]


def test_a_group_below_the_smallest_std_that_counts_is_flat() -> None:
    # Stds 0.0005 and 0.0015; 0.0005 / (0.0005 + 1e-4) = 0.8333, 0.0015 / (0.0015 + 1e-4) = 0.9375
    totals = [[0.5 - std, 0.5 + std] for std in (0.0005, 0.0015)]
    assert in_groups(totals, scale="group_std").round(4).tolist() == [[-0.8333, 0.8333], [-0.9375, 0.9375]]
    assert in_groups([[0.0, 1.0]], scale="none", min_std=0.5).tolist() == [
        [-0.5, 0.5]
    ]  # as large as that counts
    found = in_groups(totals, scale="group_std", min_std=0.001)
    assert found.round(4).tolist() == [[0.0, 0.0], [-0.9375, 0.9375]]


def test_one_that_abstains_leaves_the_others_to_themselves() -> None:
    # -1, -1, -0.9: mean -0.96667, std 0.04714; (0.06667) / (0.04714 + 1e-4) = 1.41121
    found = in_groups([[-1.0, -1.0, -0.9, None]], scale="group_std")[0]
    assert found[:3].tolist() == pytest.approx([-0.70561, -0.70561, 1.41121], abs=1e-5)
    assert np.isnan(found[3])


def test_totals_keep_what_a_float32_would_lose() -> None:
    totals = as_totals([[1.0, 1.0 + 1e-9]])
    assert totals.dtype == np.float64 and totals[0, 1] > totals[0, 0]


def test_the_stds_of_a_batch_are_those_of_all_processes() -> None:
    # This process's group has a std of 0.5, the other one's 2; all four totals: mean 1.25, std 1.63936.
    group = make_group(["x"] * 2, tiny.sample())
    gathered: list[list[float | None]] = []

    def gather(own: list[float | None]) -> list[float | None]:
        gathered.append(own)
        return [*own, 0.0, 4.0]

    (by_std,) = score_groups([group], [tiny.table((0.0, 1.0))], scale="batch", gather=gather)
    assert by_std.advantages == pytest.approx((-0.5 / (1.63936 + 1e-4), 0.5 / (1.63936 + 1e-4)), rel=1e-4)
    (gdpo,) = score_groups([group], [tiny.table((0.0, 1.0))], scale="none", normalised=True, gather=gather)
    assert gdpo.advantages == pytest.approx((-1.25 / (1.63936 + 1e-4), -0.25 / (1.63936 + 1e-4)), rel=1e-4)
    assert gathered == [[0.0, 1.0]] * 2


def test_an_abstention_has_no_advantage_and_is_not_counted() -> None:
    totals_PG = as_totals([[1.0, None, 3.0], [None, None, 5.0], [None] * 3])
    found = group_advantages(totals_PG, scale="none", batch=Moments(0.0, 1.0))
    assert found.tolist() == [[-1.0, None, 1.0], [None, None, 0.0], [None, None, None]]


def test_equals_numpy_on_random_groups() -> None:
    totals = np.random.default_rng(0).normal(size=(5, 8))
    expected = (totals - totals.mean(1, keepdims=True)) / (totals.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(in_groups(totals, scale="group_std"), expected, atol=1e-12)


def test_batch_scaling_divides_by_the_std_of_all_totals() -> None:
    # totals of the batch 1, 0, 3, 1: mean 1.25, population std sqrt((1 + 25 + 49 + 1) / 64) = 1.08972
    totals = [[1.0, 0.0], [3.0, 1.0]]
    found = in_groups(totals, scale="batch")
    assert found.tolist() == [
        pytest.approx([0.45879, -0.45879], abs=1e-4),
        pytest.approx([0.91759, -0.91759], abs=1e-4),
    ]
    # A process that has only the first group divides by the same std.
    batch = Moments(float(np.mean(totals)), float(np.std(totals)))
    alone = group_advantages(as_totals(totals[:1]), scale="batch", batch=batch)
    assert alone.tolist() == found[:1].tolist()


def test_sums_of_normalised_rewards_are_normalised_by_the_batch_as_numpy_does() -> None:
    totals = np.random.default_rng(0).normal(size=(3, 4))
    totals[0, 1] = math.nan
    totals[2] = 0.5
    expected = (totals - np.nanmean(totals)) / (np.nanstd(totals) + 1e-4)
    expected[2] = 0.0  # a flat group teaches nothing
    np.testing.assert_allclose(in_batch(totals), expected, rtol=1e-12)


def test_a_batch_without_any_total_has_no_advantage() -> None:
    nothing = [[None, None], [None, None]]
    assert np.isnan(in_groups(nothing, scale="batch")).all()
    assert np.isnan(in_batch(nothing)).all()


def test_gdpo_is_trls_but_with_population_stds() -> None:
    """Sums of rewards normalised within groups, normalised by the batch; trl's stds divide by n - 1."""
    from trl.trainer.utils import nanstd

    def population_std(values: torch.Tensor, **axis: Any) -> torch.Tensor:
        count = values.shape[axis["dim"]] if axis else values.numel()
        return nanstd(values, **axis) * math.sqrt((count - 1) / count)

    rewards = np.random.default_rng(1).normal(size=(2, 4, 2))  # prompts, completions, rewards
    weights = np.array([1.0, 0.5])
    specs = {name: RewardSpec(weight=weight) for name, weight in zip("ab", weights, strict=True)}
    parts = [
        parts_of(specs, {"a": group[:, 0], "b": group[:, 1]}, 0, normalise=True).values() for group in rewards
    ]
    totals = [[sum(column) for column in zip(*each, strict=True)] for each in parts]
    grouped = torch.tensor(rewards)
    stds = population_std(grouped, dim=1, keepdim=True)
    normalised = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (stds + 1e-4)
    sums = (normalised * torch.tensor(weights)).nansum(dim=-1)
    expected = (sums - sums.nanmean()) / (population_std(sums) + 1e-4)
    np.testing.assert_allclose(in_batch(totals), expected.numpy(), rtol=1e-6)


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    found = in_groups([[1.0, 2.0, 6.0]], scale="none", baseline="loo")
    assert found[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("scale", ["none", "group_std", "batch"])
def test_leave_one_out_equals_numpy_with_abstentions(scale: Any) -> None:
    totals = np.random.default_rng(0).normal(size=(5, 8))
    totals[0, 3] = totals[1, :6] = totals[2, 1:] = np.nan
    found = in_groups(totals, scale=scale, baseline="loo")
    for row, values in zip(found, totals, strict=True):
        present = values[~np.isnan(values)]
        for i, value in enumerate(values):
            others = np.delete(values, i)
            others = others[~np.isnan(others)]
            if np.isnan(value):
                assert np.isnan(row[i])
            elif not len(others):
                assert row[i] == 0.0  # alone in its group: nothing to compare with
            else:
                std = {"none": 1.0, "group_std": present.std() + 1e-4, "batch": np.nanstd(totals) + 1e-4}[
                    scale
                ]
                assert row[i] == pytest.approx((value - others.mean()) / std)


def test_advantages_are_had_without_torch() -> None:
    """Torch takes seconds to import, and a replay needs nothing else of it."""
    code = "import grpo.learner.advantages, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
