"""Probability ratios by hand, and what the correction for the engine leaves of long completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig
from grpo.learner.ratios import importance_ratio_T, sampler_correction
from tests.benchmarks.bench_correction import mean_weight


def test_a_completions_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    # completions of 2, 1 and 2 tokens: (2 * 8)^(1/2) = 4, 3, (1 * 0.25)^(1/2) = 0.5
    ratios, old = torch.tensor([2.0, 8.0, 3.0, 1.0, 0.25]), torch.full((5,), -1.0)
    axes = {"completion_T": torch.tensor([0, 0, 1, 2, 2]), "lengths_T": torch.tensor([2, 2, 1, 2, 2])}
    found = importance_ratio_T(old + ratios.log(), old, **axes, level="sequence")
    assert found.tolist() == pytest.approx([4, 4, 3, 0.5, 0.5])
    assert importance_ratio_T(old + ratios.log(), old, **axes, level="token").tolist() == pytest.approx(
        ratios.tolist()
    )


@pytest.mark.parametrize("length", [128, 512, 2048])
def test_by_default_noise_weighs_a_completion_the_same_whatever_its_length(length: int) -> None:
    # Within four standard errors of a mean weight of 1: .05 / sqrt(100 * 128) = .00044.
    default = LossConfig().vllm_importance_sampling_mode
    assert mean_weight(default, length, 0.05, num_completions=100) == pytest.approx(1, abs=0.0018)
    # A product over 128 and 2,048 tokens has a log with a std of .57 and 2.3, and more than 3 counts as nothing.
    found = mean_weight("sequence_mask", length, 0.05, num_completions=1000)
    assert found == pytest.approx({128: 0.942, 512: 0.66, 2048: 0.265}[length], abs=0.06)


@pytest.mark.parametrize(
    ("mode", "weights", "outside"),
    [
        ("token_truncate", [2, 3, 2.5, 1, 0.5], [False, True, False, False, True]),
        ("token_mask", [2, 0, 2.5, 1, 0], [False, True, False, False, True]),
        ("sequence_truncate", [3, 3, 2.5, 0.5, 0.5], [True, True, False, True, True]),  # 16, 2.5 and 0.25
        ("sequence_mask", [0, 0, 2.5, 0, 0], [True, True, False, True, True]),
    ],
)
def test_the_sampler_correction_by_hand(mode: Any, weights: list[float], outside: list[bool]) -> None:
    sampler = torch.full((5,), -2.0)
    learner = sampler + torch.tensor([2.0, 8.0, 2.5, 1.0, 0.25]).log()
    completion_T = torch.tensor([0, 0, 1, 2, 2])
    found = sampler_correction(learner, sampler, completion_T, mode=mode, clip_min=0.5, clip_max=3.0)
    assert found.weight_T.tolist() == pytest.approx(weights)
    assert found.outside_T.tolist() == outside
    # A ratio at a bound is inside.
    at_bounds = sampler_correction(sampler, sampler, completion_T, mode=mode, clip_min=1.0, clip_max=1.0)
    assert not at_bounds.outside_T.any()
    unbounded = sampler_correction(learner, sampler, completion_T, mode=mode, clip_min=None, clip_max=None)
    torch.testing.assert_close(unbounded.weight_T, unbounded.ratio_T)
    assert not unbounded.outside_T.any()
