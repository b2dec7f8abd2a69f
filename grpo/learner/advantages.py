"""Group-relative advantages: how much better a completion is than its siblings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from grpo.groups import Group, ScoredGroup
from rewards.scoring.specs import RewardTable

Scale = Literal["group_std", "batch", "none"]
Baseline = Literal["mean", "loo"]


def group_advantages(
    totals_PG: Tensor,
    *,
    scale: Scale,
    baseline: Baseline = "mean",
    all_totals_B: Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Reward relative to the group's mean, over its (population) std, over that of the whole batch
    (`all_totals_B`; None: `totals_PG` is the batch), or over nothing.

    baseline: "loo" compares with the mean of the *other* totals (RLOO, arXiv 2402.14740), which is
    n / (n - 1) times as far away.

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
    squares_PG = (advantages_PG**2).masked_fill(~present_PG, 0.0)
    if baseline == "loo":
        advantages_PG = advantages_PG * count_P1 / (count_P1 - 1).clamp(min=1)
    if scale == "group_std":
        std_P1 = (squares_PG.sum(dim=1, keepdim=True) / count_P1).sqrt()
        advantages_PG = advantages_PG / (std_P1 + eps)
    elif scale == "batch":
        all_totals_B = totals_PG.flatten() if all_totals_B is None else all_totals_B
        present_B = all_totals_B[~all_totals_B.isnan()]
        if len(present_B):
            advantages_PG = advantages_PG / (present_B.std(correction=0) + eps)
    return _flat_to_zero(advantages_PG, totals_PG)


def batch_advantages(totals_PG: Tensor, all_totals_B: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Distance of sums of normalised rewards from the whole batch's mean, over its (population) std.

    What follows `compose.parts_of(normalise=True)` in GDPO (arXiv 2601.05242) and in trl's `normalize_then_sum`,
    whose stds divide by n - 1.
    NaN and flat groups as in `group_advantages`.
    """
    present_B = all_totals_B[~all_totals_B.isnan()]
    if not len(present_B):
        return totals_PG
    advantages_PG = (totals_PG - present_B.mean()) / (present_B.std(correction=0) + eps)
    return _flat_to_zero(advantages_PG, totals_PG)


def score_groups(
    groups: Sequence[Group],
    tables: Sequence[RewardTable],
    *,
    scale: Scale,
    baseline: Baseline = "mean",
    normalised: bool = False,
    mask_truncated: bool = False,
    gather: Callable[[list[float]], list[float]] = list,
) -> list[ScoredGroup]:
    """Groups with their rewards and advantages; a rollout without a total has no advantage.

    normalised: the tables' totals are sums of normalised rewards. mask_truncated: completions that hit the token
    limit have no advantage, but count in those of their group. gather: puts the totals of all processes together.
    """
    totals = [[math.nan if total is None else total for total in table.totals] for table in tables]
    # float64: the rewards come as Python floats, and equal totals must stay equal.
    all_totals_B = torch.tensor(gather([total for row in totals for total in row]), dtype=torch.float64)
    if not groups:
        return []
    totals_PG = torch.tensor(totals, dtype=torch.float64)
    if normalised:
        advantages_PG = batch_advantages(totals_PG, all_totals_B)
    else:
        advantages_PG = group_advantages(totals_PG, scale=scale, baseline=baseline, all_totals_B=all_totals_B)
    if mask_truncated:
        cut_off = [[not rollout.stopped for rollout in group.rollouts] for group in groups]
        advantages_PG = advantages_PG.masked_fill(torch.tensor(cut_off), torch.nan)
    return [
        ScoredGroup(
            group=group,
            rewards=table.columns,
            parts=table.parts,
            totals=table.totals,
            advantages=tuple(None if math.isnan(value) else value for value in row),
        )
        for group, table, row in zip(groups, tables, advantages_PG.tolist(), strict=True)
    ]


def _flat_to_zero(advantages_PG: Tensor, totals_PG: Tensor) -> Tensor:
    """Exact zeros for groups whose totals are all equal, NaN for rollouts without one."""
    highest_P1 = totals_PG.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = totals_PG.nan_to_num(torch.inf).amin(dim=1, keepdim=True)
    advantages_PG = advantages_PG.masked_fill(highest_P1 <= lowest_P1, 0.0)
    return advantages_PG.masked_fill(totals_PG.isnan(), torch.nan)
