"""The KL divergence to the reference as a part of the reward, in place of a term in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grpo.config.learner import LossConfig
from grpo.groups import Group, RewardTable
from grpo.learner.losses import kl_T, mean_of
from grpo.packing import Family, PackedRow, Segment, build_row
from grpo.run.metrics import Metrics


def subtract_divergences(
    groups: Sequence[Group],
    tables: Sequence[RewardTable],
    reference_logps: Callable[[Sequence[PackedRow]], list[Tensor]],
    loss: LossConfig,
    family: Family,
) -> tuple[list[RewardTable], Metrics]:
    """Subtract `beta` times each completion's divergence from its total; the penalty becomes a part called `kl`.

    A token's divergence is estimated for the policy as the engine sampled it; a completion's is the sum over its
    tokens, as its log-prob is. The reference makes one pass per group, without gradient.
    """
    rows = [_row(group, family) for group in groups]
    penalised, metrics = [], Metrics()
    for group, table, row, reference_T in zip(groups, tables, rows, reference_logps(rows), strict=True):
        reference_T = reference_T.to(row.sampler_logps_T.device)
        divergence_T = kl_T(row.sampler_logps_T, reference_T, estimator=loss.kl_estimator)
        metrics += Metrics(means={"policy/kl": mean_of(divergence_T)})
        # One sum over tokens per completion, (G,).
        sums = torch.zeros(len(group.rollouts)).index_add(0, row.completion_T, divergence_T)
        penalised.append(_less(table, (loss.beta * sums).tolist()))
    return penalised, metrics


def _row(group: Group, family: Family) -> PackedRow:
    zeros = (0.0,) * len(group.rollouts)
    segment = Segment(prompt=group.prompt, rollouts=group.rollouts, advantages=zeros)
    return build_row([segment], family)


def _less(table: RewardTable, penalties: Sequence[float]) -> RewardTable:
    totals = tuple(
        None if total is None else total - penalty
        for total, penalty in zip(table.totals, penalties, strict=True)
    )
    return replace(table, parts={**table.parts, "kl": tuple(-value for value in penalties)}, totals=totals)
