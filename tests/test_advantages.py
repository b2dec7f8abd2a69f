"""Group-relative advantages against numbers worked out by hand and against numpy."""

import math

import numpy as np
import pytest
import torch

from grpo.advantages import group_advantages


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
