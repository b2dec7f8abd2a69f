"""Group-relative advantages against numbers worked out by hand and against numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from grpo.learner.advantages import batch_advantages, group_advantages
from rewards.scoring.compose import parts_of
from rewards.scoring.specs import RewardSpec


def test_a_group_by_hand() -> None:
    # totals 1, 0, 0, 1: mean 0.5, population std 0.5 -> (1 - 0.5) / (0.5 + 1e-4) = 0.99980
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), scale="group_std")
    assert advantages[0].tolist() == pytest.approx([0.99980, -0.99980, -0.99980, 0.99980], abs=1e-5)


def test_without_scaling_an_advantage_is_the_distance_from_the_mean() -> None:
    advantages = group_advantages(torch.tensor([[2.0, 0.5, 0.5]]), scale="none")
    assert advantages[0].tolist() == pytest.approx([1.0, -0.5, -0.5])


@pytest.mark.parametrize("total", [0.2, 1.2, 0.1 + 0.2, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_group_gets_exact_zeros(total: float, dtype: torch.dtype) -> None:
    advantages = group_advantages(torch.full((1, 16), total, dtype=dtype), scale="group_std")
    assert advantages.tolist() == [[0.0] * 16]


def test_an_abstention_stays_nan_and_is_not_counted() -> None:
    nan = math.nan
    advantages = group_advantages(torch.tensor([[1.0, nan, 3.0], [nan, nan, 5.0], [nan] * 3]), scale="none")
    assert advantages[0, [0, 2]].tolist() == [-1.0, 1.0]
    assert advantages[1, 2].item() == 0.0
    assert advantages.isnan().tolist() == [[False, True, False], [True, True, False], [True, True, True]]


def test_equals_numpy_on_random_groups() -> None:
    totals = np.random.default_rng(0).normal(size=(5, 8))
    expected = (totals - totals.mean(1, keepdims=True)) / (totals.std(1, keepdims=True) + 1e-4)
    advantages = group_advantages(torch.from_numpy(totals), scale="group_std")
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)


def test_batch_scaling_divides_by_the_std_of_all_totals() -> None:
    # totals of the batch 1, 0, 3, 1: mean 1.25, population std sqrt((1 + 25 + 49 + 1) / 64) = 1.08972
    totals = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    advantages = group_advantages(totals, scale="batch")
    assert advantages.tolist() == [
        pytest.approx([0.45879, -0.45879], abs=1e-4),
        pytest.approx([0.91759, -0.91759], abs=1e-4),
    ]
    # A process that has only the first group divides by the same std.
    alone = group_advantages(totals[:1], scale="batch", all_totals_B=totals.flatten())
    assert torch.equal(alone, advantages[:1])


def test_sums_of_normalised_rewards_are_normalised_by_the_batch_as_numpy_does() -> None:
    totals = torch.tensor(np.random.default_rng(0).normal(size=(3, 4)))
    totals[0, 1] = math.nan
    totals[2] = 0.5
    expected = (totals.numpy() - np.nanmean(totals)) / (np.nanstd(totals) + 1e-4)
    expected[2] = 0.0  # a flat group teaches nothing
    found = batch_advantages(totals, totals.flatten()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_batch_without_any_total_has_no_advantage() -> None:
    totals = torch.full((2, 2), math.nan)
    assert group_advantages(totals, scale="batch").isnan().all()
    assert batch_advantages(totals, totals.flatten()).isnan().all()


def test_gdpo_is_trls_but_with_population_stds() -> None:
    """Sums of rewards normalised within groups, normalised by the batch; trl's stds divide by n - 1."""
    from trl.trainer.utils import nanstd

    def population_std(values: torch.Tensor, **axis: Any) -> torch.Tensor:
        count = values.shape[axis["dim"]] if axis else values.numel()
        return nanstd(values, **axis) * math.sqrt((count - 1) / count)

    rewards = np.random.default_rng(1).normal(size=(2, 4, 2))  # prompts, completions, rewards
    weights = np.array([1.0, 0.5])
    specs = {name: RewardSpec(weight=weight) for name, weight in zip("ab", weights, strict=True)}
    totals = torch.tensor(
        [
            [
                sum(column)
                for column in zip(
                    *parts_of(specs, {"a": group[:, 0], "b": group[:, 1]}, 0, normalise=True).values(),
                    strict=True,
                )
            ]
            for group in rewards
        ]
    )
    grouped = torch.tensor(rewards)
    stds = population_std(grouped, dim=1, keepdim=True)
    normalised = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (stds + 1e-4)
    sums = (normalised * torch.tensor(weights)).nansum(dim=-1)
    expected = (sums - sums.nanmean()) / (population_std(sums) + 1e-4)
    torch.testing.assert_close(batch_advantages(totals, totals.flatten()), expected, rtol=1e-6, atol=0)


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    found = group_advantages(torch.tensor([[1.0, 2.0, 6.0]]), scale="none", baseline="loo")
    assert found[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("scale", ["none", "group_std", "batch"])
def test_leave_one_out_equals_numpy_with_abstentions(scale: Any) -> None:
    totals = np.random.default_rng(0).normal(size=(5, 8))
    totals[0, 3] = totals[1, :6] = totals[2, 1:] = np.nan
    found = group_advantages(torch.from_numpy(totals), scale=scale, baseline="loo").numpy()
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
