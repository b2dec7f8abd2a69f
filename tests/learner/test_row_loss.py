"""The loss and the figures of a row by hand: what is summed, with which sign, and what it is divided by."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config.learner import LossConfig
from grpo.learner.losses import StepCounts, engine_correction, row_loss, sampling_metrics
from grpo.packing import Layout, PackedRow
from grpo.policy.model import TokenScores

EMPTY = torch.empty(0)
LAYOUT = Layout(blocks=(), restore_N=EMPTY, prompt_N=EMPTY, completion_N=EMPTY, offset_N=EMPTY)
# A completion of one token and one of two.
ROW = PackedRow(
    segments=(),
    input_ids_N=torch.zeros(5),
    positions_3N=EMPTY,
    layout=LAYOUT,
    vision_index_M=EMPTY,
    source_T=EMPTY,
    target_T=EMPTY,
    lengths_T=torch.tensor([1, 2, 2]),
    completion_T=torch.tensor([0, 1, 1]),
    advantages_T=torch.tensor([1.0, -2.0, -2.0]),
    sampler_logps_T=torch.tensor([-1.5, -2.0, -0.1]),
)
SCORES = TokenScores(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([1.0, 2.0, 3.0]))
OLD_T = torch.tensor([-1.2, -1.9, -0.7])
REFERENCE_T = torch.tensor([-0.8, -2.5, -0.4])
COUNTS = StepCounts(num_completions=4, num_tokens=6, max_new_tokens=8)
RATIOS = [math.exp(0.2), math.exp(-0.1), math.exp(0.2)]


def loss_of(reference_T: Tensor | None = None, **settings: Any) -> tuple[float, dict[str, float]]:
    config = LossConfig(**{"vllm_importance_sampling_correction": False, "epsilon": 0.9} | settings)
    loss, figures = row_loss(
        ROW,
        SCORES,
        config,
        COUNTS,
        old_logps_T=OLD_T,
        kept_T=torch.tensor([1.0, 1.0, 0.0]),
        num_kept_tokens=10,
        reference_logps_T=reference_T,
    )
    return float(loss), figures.reduced()


def test_a_token_counts_by_its_ratio_advantage_and_weight_if_it_is_kept() -> None:
    # dapo: by the step's 6 tokens; grpo: by 4 completions, and the second one's token by its length.
    assert loss_of(type="dapo")[0] == pytest.approx((-RATIOS[0] + 2 * RATIOS[1]) / 6)
    assert loss_of(type="grpo")[0] == pytest.approx((-RATIOS[0] + 2 * RATIOS[1] / 2) / 4)
    # gspo: both tokens of the second completion have the mean log-ratio (-0.1 + 0.2) / 2.
    assert loss_of(type="gspo")[0] == pytest.approx((-RATIOS[0] + 2 * math.exp(0.05) / 2) / 4)


@pytest.mark.parametrize(
    ("estimator", "divergences"),
    [
        # reference - policy is 0.2, -0.5 and 0.1.
        ("k1", [-0.2, 0.5, -0.1]),
        ("k2", [0.02, 0.125, 0.005]),
        ("k3", [math.exp(0.2) - 1.2, math.exp(-0.5) - 0.5, math.exp(0.1) - 1.1]),
    ],
)
@pytest.mark.parametrize("is_weighted", [True, False])
def test_a_divergence_is_added_for_every_token(
    estimator: str, divergences: list[float], is_weighted: bool
) -> None:
    settings = {"beta": 0.5, "kl_estimator": estimator, "use_bias_correction_kl": is_weighted}
    loss, figures = loss_of(REFERENCE_T, **settings)
    ratios = RATIOS if is_weighted else [1.0, 1.0, 1.0]
    expected = [each * ratio for each, ratio in zip(divergences, ratios, strict=True)]
    assert loss - loss_of()[0] == pytest.approx(0.5 * sum(expected) / 6, abs=1e-6)
    assert figures["policy/kl"] == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_the_entropy_bonus_is_the_mean_over_what_is_kept_in_all_processes() -> None:
    assert loss_of(entropy_coef=0.5)[0] - loss_of()[0] == pytest.approx(-0.5 * (1.0 + 2.0) / 10)


def test_tokens_beyond_either_bound_of_the_engines_ratio_are_left_out() -> None:
    # The ratios to the engine are exp(0.3), exp(0.1) and exp(-0.6).
    config = LossConfig(
        vllm_importance_sampling_mode="token_mask",
        vllm_importance_sampling_clip_min=0.9,
        vllm_importance_sampling_clip_max=1.3,
    )
    found = engine_correction(ROW, OLD_T, config)
    assert found is not None and found.outside_T.tolist() == [True, False, True]


def test_a_rows_figures_have_their_names() -> None:
    found = sampling_metrics(ROW, SCORES, LossConfig(vllm_importance_sampling_correction=False)).reduced()
    assert found == pytest.approx(
        {
            "tokens/computed": 5,
            "policy/entropy": 2.0,
            "sampler/gap_mean": (0.5 + 0.0 + 0.4) / 3,
            "sampler/gap_max": 0.5,
        }
    )
