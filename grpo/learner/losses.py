"""Policy losses per completion token (pure functions); `LOSSES` lists them. Read after `importance.py`.

Every axis T is the flat list of the completion tokens of a packed row. A row's loss is
`(weights_T * loss_T).sum()`, where the weights hold the *step's* counts: so the gradient depends neither
on how groups were packed into rows nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from grpo.config.learner import LossConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """What the loss is divided by: counts over all processes, groups without signal included."""

    num_completions: int
    """With those that are masked because they were cut off."""
    num_tokens: int
    """Of the completions that are not masked."""
    max_new_tokens: int


def clipped_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """PPO's clipped surrogate, negated; `epsilon_high` bounds the ratio from above (DAPO, arXiv 2503.14476).

    `delta` bounds it where the advantage is negative, which the other two do not (arXiv 2505.07291).
    """
    clipped_T = ratio_T.clamp(1 - settings.epsilon, 1 + settings.epsilon_high)
    if settings.delta is not None:
        ratio_T = ratio_T.clamp(max=settings.delta)
    return -torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)


def clipped_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """True where the clip is active, that is where the token has no gradient."""
    low_T = (ratio_T < 1 - settings.epsilon) & (advantages_T < 0)
    high_T = (ratio_T > 1 + settings.epsilon_high) & (advantages_T > 0)
    if settings.delta is not None:
        high_T = high_T | ((ratio_T > settings.delta) & (advantages_T < 0))
    return low_T | high_T


def cispo_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """REINFORCE with the ratio, at most `epsilon_high` itself, as a constant weight: every token keeps its gradient.

    MiniMax-M1, arXiv 2506.13585; without a lower bound as in ScaleRL, arXiv 2510.13786.
    """
    return -ratio_T.clamp(max=settings.epsilon_high).detach() * advantages_T * logps_T


def cispo_clipped_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """True where the weight is bounded."""
    return ratio_T > settings.epsilon_high


def sapo_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """A sigmoid of the ratio in place of the clip, steeper the higher its temperature (SAPO, arXiv 2511.20347)."""
    temperature_T = torch.where(
        advantages_T > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg
    )
    return -torch.sigmoid(temperature_T * (ratio_T - 1)) * 4 / temperature_T * advantages_T


def never_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """Nothing is clipped."""
    return torch.zeros_like(ratio_T, dtype=torch.bool)


def completion_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """The mean over completions of their token means. lengths_T: of the completion that a token belongs to."""
    return 1.0 / (lengths_T * counts.num_completions)


def token_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """The mean over all tokens of the step."""
    return torch.full_like(lengths_T, 1.0 / counts.num_tokens, dtype=torch.float32)


def budget_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """The sum over tokens by what completions could have been: no length is preferred (Dr. GRPO, arXiv 2503.20783)."""
    num_tokens = counts.num_completions * counts.max_new_tokens
    return torch.full_like(lengths_T, 1.0 / num_tokens, dtype=torch.float32)


class Loss(NamedTuple):
    """What `loss.type` stands for."""

    token_T: Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]
    """Of the ratios, log-probs and advantages."""
    clipped_T: Callable[[Tensor, Tensor, LossConfig], Tensor]
    weights_T: Callable[[Tensor, StepCounts], Tensor]


LOSSES: dict[str, Loss] = {
    "grpo": Loss(clipped_loss_T, clipped_T, completion_weights_T),
    # Its ratios are those of whole completions.
    "gspo": Loss(clipped_loss_T, clipped_T, completion_weights_T),
    "bnpo": Loss(clipped_loss_T, clipped_T, token_weights_T),
    "dapo": Loss(clipped_loss_T, clipped_T, token_weights_T),
    "dr_grpo": Loss(clipped_loss_T, clipped_T, budget_weights_T),
    "cispo": Loss(cispo_loss_T, cispo_clipped_T, token_weights_T),
    "sapo": Loss(sapo_loss_T, never_T, completion_weights_T),
}
"""`bnpo` divides by the tokens of the batch, `dapo` by those of the whole step; trl's bnpo takes a micro-batch for the
batch. Here it is the step, or the gradient would depend on packing: the two names mean the same."""


def kl_T(
    logps_T: Tensor,
    reference_logps_T: Tensor,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    ratio_T: Tensor | None = None,
) -> Tensor:
    """An estimate of KL(policy || reference) per token (http://joschu.net/blog/kl-approx.html).

    k1 is unbiased and may be negative, k2 is biased and has the unbiased gradient on-policy, k3 is unbiased
    and never negative. ratio_T: the probability ratio to what the tokens were sampled with. Given, the
    estimate is multiplied by it, and then the gradient of k1 and k3 is unbiased too, also on-policy where
    the ratio is 1 (DeepSeek-V3.2, arXiv 2512.02556).
    """
    difference_T = reference_logps_T - logps_T
    if estimator == "k1":
        divergence_T = -difference_T
    elif estimator == "k2":
        divergence_T = 0.5 * difference_T**2
    else:
        divergence_T = torch.exp(difference_T) - difference_T - 1
    return divergence_T if ratio_T is None else divergence_T * ratio_T
