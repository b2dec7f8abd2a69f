"""The parts of a completion's total that the reference gives: a penalty for divergence, a bonus for consistency.

The penalty is the KL divergence in place of a term in the loss. The bonus is GRPO-CARE's (arXiv 2506.16141): among the
right completions of a group, those whose answer the reference finds likely after their own reasoning get more.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grpo.config.learner import CareConfig, LossConfig
from grpo.groups import Group, RewardTable
from grpo.learner.losses import kl_T, mean_of
from grpo.packing import PackedRow, Segment, build_row
from grpo.policy.families import ModelFamily
from grpo.run.metrics import Mean, Metrics
from rewards.parsing import ANSWER, is_blank, only_block

RIGHT_ABOVE = 0.1
"""The accuracy above which a completion is right, as in GRPO-CARE's code."""
ROUNDING = 1e-6
"""The most that a likelihood may be below its limit: log-probs are fp32, and equal ones must all reach their mean."""


def add_reference_parts(
    groups: Sequence[Group],
    tables: Sequence[RewardTable],
    reference_logps: Callable[[Sequence[PackedRow]], list[Tensor]],
    loss: LossConfig,
    family: ModelFamily,
) -> tuple[list[RewardTable], Metrics]:
    """Add the parts that the reference gives to the totals, `kl` (below 0) and `care`, as the settings ask for them.

    The reference makes one pass per group, without gradient.
    """
    rows = [_row(group, family) for group in groups]
    found, metrics = [], Metrics()
    for group, table, row, reference_T in zip(groups, tables, rows, reference_logps(rows), strict=True):
        reference_T = reference_T.to(row.sampler_logps_T.device)
        parts: dict[str, Sequence[float]] = {}
        if loss.kl_in_reward:
            divergence_T = kl_T(row.sampler_logps_T, reference_T, estimator=loss.kl_estimator)
            metrics += Metrics(means={"policy/kl": mean_of(divergence_T)})
            # A token's divergence is estimated for the policy as the engine sampled it; a completion's is the sum over
            # its tokens, as its log-prob is: (G,).
            sums = torch.zeros(len(group.rollouts)).index_add(0, row.completion_T, divergence_T)
            parts["kl"] = (-loss.beta * sums).tolist()
        if loss.care.bonus:
            likelihoods = answer_likelihoods(group, reference_T, family)
            parts["care"] = care_bonuses(table.columns[loss.care.reward], likelihoods, loss.care)
            given = Mean.of(float(bonus > 0) for bonus in parts["care"])
            metrics += Metrics(means={"care/likelihood": Mean.of(likelihoods), "care/given": given})
        found.append(_with(table, parts))
    return found, metrics


def answer_likelihoods(group: Group, reference_T: Tensor, family: ModelFamily) -> list[float | None]:
    """Return for each completion exp of its answer's mean log-prob per token; None without one answer that can be read.

    reference_T: the reference's log-probs of the completions' tokens, one completion after another.
    """
    found: list[float | None] = []
    lengths = [len(rollout.token_ids) for rollout in group.rollouts]
    for rollout, logps_T in zip(group.rollouts, reference_T.split(lengths), strict=True):
        tokens = answer_tokens(rollout.token_ids, family.decode)
        found.append(None if tokens is None else math.exp(float(logps_T[tokens].mean())))
    return found


def answer_tokens(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> slice | None:
    """Return the tokens that hold any of the answer block's content; None without exactly one such block."""
    text = decode(token_ids)
    content = only_block(text, ANSWER)
    if content is None or is_blank(content):
        return None
    start = text.index(f"<{ANSWER}>") + len(f"<{ANSWER}>")
    # The characters before the end of each number of tokens: a token may hold several, or a part of one.
    prefixes, num_characters = range(len(token_ids) + 1), lambda count: len(decode(token_ids[:count]))
    first = bisect_right(prefixes, start, key=num_characters) - 1
    return slice(first, bisect_left(prefixes, start + len(content), key=num_characters))


def care_bonuses(
    accuracies: Sequence[float | None], likelihoods: Sequence[float | None], care: CareConfig
) -> list[float]:
    """Return GRPO-CARE's bonus of each completion of a group: `bonus` times its accuracy, or 0.

    It is for completions that are right, at least as right as their group's mean, and whose likelihood, cut at `cap`,
    is at most `margin` below the mean of all of these. Source: `grpo_trainer_ref_ema.py` of the authors' code.
    """
    known = [value for value in accuracies if value is not None]
    best = [
        index
        for index, value in enumerate(accuracies)
        if value is not None
        and likelihoods[index] is not None
        and value > RIGHT_ABOVE
        and value >= sum(known) / len(known) - ROUNDING
    ]
    cut = {index: min(likelihoods[index] or 0.0, care.cap) for index in best}
    least = sum(cut.values()) / len(cut) - care.margin - ROUNDING if cut else math.inf
    return [
        care.bonus * (value or 0.0) if cut.get(index, -1.0) >= least else 0.0
        for index, value in enumerate(accuracies)
    ]


def _row(group: Group, family: ModelFamily) -> PackedRow:
    zeros = (0.0,) * len(group.rollouts)
    segment = Segment(prompt=group.prompt, rollouts=group.rollouts, advantages=zeros)
    return build_row([segment], family)


def _with(table: RewardTable, parts: Mapping[str, Sequence[float]]) -> RewardTable:
    """Return a table with further parts of the totals; a total that is missing stays so."""
    totals = tuple(
        None if total is None else total + sum(added)
        for total, *added in zip(table.totals, *parts.values(), strict=True)
    )
    return replace(
        table, parts={**table.parts, **{n: tuple(each) for n, each in parts.items()}}, totals=totals
    )
