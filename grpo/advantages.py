"""Group-relative advantages: how much better a completion is than its siblings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from grpo.groups import Group, ScoredGroup
from rewards.specs import RewardTable


def group_advantages(totals_PG: Tensor, *, scale: Literal["group_std", "none"], eps: float = 1e-4) -> Tensor:
    """Reward relative to the group's mean, over its (population) std unless `scale` is "none".

    NaN is an abstention: it stays NaN and takes no part in its group's mean and std.
    A flat group (all rewards equal) teaches nothing and gets exact zeros: its rounding errors would
    not cancel, float32's mean of sixteen 0.2s is not 0.2. DeepSeekMath, arXiv 2402.03300, eq. 3; without
    the division it is Dr. GRPO, arXiv 2503.20783.
    """
    present_PG = ~totals_PG.isnan()
    filled_PG = totals_PG.nan_to_num(0.0)
    count_P1 = present_PG.sum(dim=1, keepdim=True).clamp(min=1)
    mean_P1 = filled_PG.sum(dim=1, keepdim=True) / count_P1
    advantages_PG = filled_PG - mean_P1
    if scale == "group_std":
        squares_PG = (advantages_PG**2).masked_fill(~present_PG, 0.0)
        std_P1 = (squares_PG.sum(dim=1, keepdim=True) / count_P1).sqrt()
        advantages_PG = advantages_PG / (std_P1 + eps)
    highest_P1 = totals_PG.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = totals_PG.nan_to_num(torch.inf).amin(dim=1, keepdim=True)
    advantages_PG = advantages_PG.masked_fill(highest_P1 <= lowest_P1, 0.0)
    return advantages_PG.masked_fill(~present_PG, torch.nan)


def score_groups(
    groups: Sequence[Group], tables: Sequence[RewardTable], *, scale: Literal["group_std", "none"]
) -> list[ScoredGroup]:
    """Groups with their rewards and advantages; a rollout without a total has no advantage."""
    if not groups:
        return []
    totals = [[math.nan if total is None else total for total in table.totals] for table in tables]
    # float64: the rewards come as Python floats, and equal totals must stay equal.
    advantages = group_advantages(torch.tensor(totals, dtype=torch.float64), scale=scale).tolist()
    return [
        ScoredGroup(
            group=group,
            rewards=table.columns,
            parts=table.parts,
            totals=table.totals,
            advantages=tuple(None if math.isnan(value) else value for value in row),
        )
        for group, table, row in zip(groups, tables, advantages, strict=True)
    ]
