"""Probability ratios between the policy that is trained, the one before the update, and the engine (pure functions).

Axis T is that of `losses.py`: all completion tokens of a packed row. `completion_T` says which completion
a token belongs to; a row holds whole completions, so what concerns a completion is computed inside its row.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from grpo.config.learner import Level

CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def completion_sums_T(values_T: Tensor, completion_T: Tensor) -> Tensor:
    """Return, at each token, the sum of the values over its completion."""
    # There are at most as many completions as tokens; asking for their number would wait for the GPU.
    return torch.zeros_like(values_T).index_add(0, completion_T, values_T)[completion_T]


def importance_ratio_T(
    logps_T: Tensor, old_logps_T: Tensor, *, completion_T: Tensor, lengths_T: Tensor, level: Level
) -> Tensor:
    """Return the probability ratio of each token to the policy before the update, with gradient.

    level: "sequence" gives a completion's tokens their geometric mean (GSPO, arXiv 2507.18071).
    """
    log_ratio_T = logps_T - old_logps_T
    if level == "sequence":
        log_ratio_T = completion_sums_T(log_ratio_T, completion_T) / lengths_T
    return torch.exp(log_ratio_T)


class Correction(NamedTuple):
    """Importance weights for tokens that the engine sampled with slightly other probabilities than the learner's."""

    ratio_T: Tensor
    """The learner's probability over the engine's, of each token or of its completion."""
    outside_T: Tensor
    """The mask, True for tokens whose ratio lies beyond a bound."""
    weight_T: Tensor
    """The weight of each token: its ratio, cut at the bounds, or zero beyond them."""


def sampler_correction(
    old_logps_T: Tensor,
    sampler_logps_T: Tensor,
    completion_T: Tensor,
    *,
    mode: CorrectionMode,
    clip_min: float | None,
    clip_max: float | None,
) -> Correction:
    """Return truncated (TIS) or masked (MIS) importance weights, by token or by completion.

    The modes are trl's of the same names. A completion's ratio is the product over its tokens.
    Yao et al. 2025, https://fengyao.notion.site/off-policy-rl.
    """
    log_ratio_T = old_logps_T - sampler_logps_T
    if mode.startswith("sequence"):
        log_ratio_T = completion_sums_T(log_ratio_T, completion_T)
    ratio_T = torch.exp(log_ratio_T)
    low = -math.inf if clip_min is None else clip_min
    high = math.inf if clip_max is None else clip_max
    outside_T = (ratio_T < low) | (ratio_T > high)
    weight_T = ratio_T.clamp(low, high) if mode.endswith("truncate") else ratio_T.masked_fill(outside_T, 0.0)
    return Correction(ratio_T=ratio_T, outside_T=outside_T, weight_T=weight_T)
