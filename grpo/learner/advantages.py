"""Group-relative advantages: how much better a completion is than its siblings. In numpy, for training and replay.

A missing total is masked, takes no part in any mean or std, and has no advantage. Arrays are float64: rewards are
Python floats, and equal totals have to stay equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.ma import MaskedArray

from grpo.groups import Group, RewardTable, ScoredGroup, differ

Scale = Literal["group_std", "batch", "none"]
Baseline = Literal["mean", "loo"]


class Moments(NamedTuple):
    """Mean and (population) std of the totals of a batch: numbers, or arrays (P, 1) for groups of several batches."""

    mean: float | np.ndarray
    std: float | np.ndarray


def group_advantages(
    totals_PG: MaskedArray,
    *,
    scale: Scale,
    batch: Moments,
    baseline: Baseline = "mean",
    min_std: float = 0.0,
    eps: float = 1e-4,
) -> MaskedArray:
    """Return each total less the group's mean, over the group's (population) std, the batch's, or nothing.

    baseline: "loo" compares with the mean of the *other* totals (RLOO, arXiv 2402.14740), which is
    n / (n - 1) times as far away.

    A flat group teaches nothing and gets exact zeros (`flat_groups`, which min_std is for): its rounding errors would
    not cancel, the mean of three 0.1s is not 0.1. DeepSeekMath, arXiv 2402.03300, eq. 3; without the division it is
    Dr. GRPO, arXiv 2503.20783.
    """
    advantages_PG = totals_PG - totals_PG.mean(axis=1, keepdims=True)
    if baseline == "loo":
        count_P1 = totals_PG.count(axis=1, keepdims=True)
        advantages_PG = advantages_PG * (count_P1 / np.maximum(count_P1 - 1, 1))
    if scale == "group_std":
        advantages_PG = advantages_PG / (totals_PG.std(axis=1, keepdims=True) + eps)
    elif scale == "batch":
        advantages_PG = advantages_PG / (batch.std + eps)
    return _flat_to_zero(advantages_PG, totals_PG, min_std)


def batch_advantages(totals_PG: MaskedArray, *, batch: Moments, eps: float = 1e-4) -> MaskedArray:
    """Return the distance of sums of normalised rewards from the batch's mean, over its (population) std.

    The second half of GDPO (arXiv 2601.05242), after `compose.parts_of(normalise=True)`, and of trl's
    `normalize_then_sum`, whose stds divide by n - 1. Flat groups get exact zeros, as in `group_advantages`.
    """
    return _flat_to_zero((totals_PG - batch.mean) / (batch.std + eps), totals_PG, min_std=0.0)


def advantages_of(
    totals_PG: MaskedArray,
    stopped_PG: np.ndarray,
    *,
    batch: Moments,
    scale: Scale,
    baseline: Baseline,
    min_std: float,
    normalised: bool,
    mask_truncated: bool,
) -> MaskedArray:
    """Return the advantages of a step's completions, or of many steps' if `batch` has each group's own moments.

    stopped_PG: False where a completion was cut off at the token limit. `group_advantages` explains
    scale, baseline and batch, and `score_groups` the others.
    """
    if normalised:
        advantages_PG = batch_advantages(totals_PG, batch=batch)
    else:
        advantages_PG = group_advantages(
            totals_PG, scale=scale, baseline=baseline, batch=batch, min_std=min_std
        )
    return np.ma.masked_where(mask_truncated & ~stopped_PG, advantages_PG)


def score_groups(
    groups: Sequence[Group],
    tables: Sequence[RewardTable],
    *,
    scale: Scale,
    baseline: Baseline = "mean",
    min_std: float = 0.0,
    normalised: bool = False,
    mask_truncated: bool = False,
    gather: Callable[[list[float | None]], list[float | None]] = list,
) -> list[ScoredGroup]:
    """Return the groups with their rewards and advantages; a rollout without a total has no advantage.

    min_std: groups whose std is below it are flat. normalised: the tables' totals are sums of normalised rewards.
    mask_truncated: completions that hit the token
    limit have no advantage, but count in those of their group. gather: puts the totals of all processes together.
    """
    all_totals_B = as_totals(gather([total for table in tables for total in table.totals]))
    if not groups:
        return []
    advantages_PG = advantages_of(
        as_totals([table.totals for table in tables]),
        np.array([[rollout.stopped for rollout in group.rollouts] for group in groups]),
        batch=Moments(all_totals_B.mean(), all_totals_B.std()),
        scale=scale,
        baseline=baseline,
        min_std=min_std,
        normalised=normalised,
        mask_truncated=mask_truncated,
    )
    return [
        ScoredGroup(group=group, table=table, advantages=tuple(row))
        for group, table, row in zip(groups, tables, advantages_PG.tolist(), strict=True)
    ]


def as_totals(values: Any) -> MaskedArray:
    """Return an array of totals, masked where a total is None or NaN."""
    array = np.array(values, dtype=np.float64)
    return MaskedArray(array, mask=np.isnan(array))


def flat_groups(totals_PG: MaskedArray, *, min_std: float) -> np.ndarray:
    """Return which groups are flat, (P,): all totals are equal but for rounding, or their std is below `min_std`.

    A group with one total or none is flat too.
    """
    low_P, high_P, std_P = (
        np.ma.filled(of_group, 0.0)
        for of_group in (totals_PG.min(axis=1), totals_PG.max(axis=1), totals_PG.std(axis=1))
    )
    return ~differ(low_P, high_P) | (std_P < min_std)


def _flat_to_zero(advantages_PG: MaskedArray, totals_PG: MaskedArray, min_std: float) -> MaskedArray:
    """Set the advantages of flat groups to exactly 0."""
    is_flat_P1 = flat_groups(totals_PG, min_std=min_std)[:, None]
    return MaskedArray(np.where(is_flat_P1, 0.0, advantages_PG), mask=totals_PG.mask)
