"""Policy losses per completion token (pure functions).

Every axis T is the flat list of the completion tokens of a packed row. A row's loss is
`(weights_T * loss_T).sum()`, where the weights hold the *step's* counts: so the gradient depends neither
on how groups were packed into rows nor on the number of processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def clipped_loss_T(
    logps_T: Tensor, old_logps_T: Tensor, advantages_T: Tensor, *, epsilon: float, epsilon_high: float
) -> Tensor:
    """PPO's clipped surrogate, negated; `epsilon_high` bounds the ratio from above (DAPO, arXiv 2503.14476)."""
    ratio_T = torch.exp(logps_T - old_logps_T)
    clipped_T = ratio_T.clamp(1 - epsilon, 1 + epsilon_high)
    return -torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)


def clipped_T(
    logps_T: Tensor, old_logps_T: Tensor, advantages_T: Tensor, *, epsilon: float, epsilon_high: float
) -> Tensor:
    """True where the clip is active, that is where the token has no gradient."""
    ratio_T = torch.exp(logps_T - old_logps_T)
    low_T = (ratio_T < 1 - epsilon) & (advantages_T < 0)
    return low_T | ((ratio_T > 1 + epsilon_high) & (advantages_T > 0))


def kl_T(logps_T: Tensor, reference_logps_T: Tensor, old_logps_T: Tensor | None = None) -> Tensor:
    """The k3 estimate of KL(policy || reference) per token, never negative (http://joschu.net/blog/kl-approx.html).

    old_logps_T: what the tokens were sampled with. Given, the estimate is multiplied by the probability
    ratio, whose gradient makes the estimate's gradient unbiased, also on-policy where the ratio is 1
    (DeepSeek-V3.2, arXiv 2512.02556).
    """
    difference_T = reference_logps_T - logps_T
    divergence_T = torch.exp(difference_T) - difference_T - 1
    return divergence_T if old_logps_T is None else divergence_T * torch.exp(logps_T - old_logps_T)


def token_weights_T(
    lengths_T: Tensor, *, loss_type: Literal["grpo", "dapo"], num_completions: int, num_tokens: int
) -> Tensor:
    """What each token's loss counts.

    lengths_T: the length of the completion that a token belongs to. num_completions and num_tokens are
    those of the whole step: all processes, groups without signal included.
    """
    if loss_type == "grpo":
        return 1.0 / (lengths_T * num_completions)
    return torch.full_like(lengths_T, 1.0 / num_tokens, dtype=torch.float32)
