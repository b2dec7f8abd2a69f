"""The figures of a scored group: rewards, lengths, signal, and the shares on which rewards failed or abstained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from grpo.groups import RewardTable, Rollout, ScoredGroup, differ
from grpo.run.metrics import Mean, Metrics
from rewards.scoring.compose import gates_open, names_that_count
from rewards.scoring.specs import RewardSpec


def group_metrics(scored: ScoredGroup, specs: Mapping[str, RewardSpec], *, min_std: float) -> Metrics:
    """Return a group's figures. Totals count once per rollout, the std of the totals and the signal once per group.

    min_std: the std below which groups were made flat.
    """
    table, rollouts = scored.table, scored.group.rollouts
    totals = [total for total in table.totals if total is not None]
    stds = [float(np.std(totals))] if totals else []
    is_small = [std < min_std and bool(differ(min(totals), max(totals))) for std in stds]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    return Metrics(
        means={
            "reward/mean": Mean.of(totals),
            "reward/std": Mean.of(stds),
            "completion/length": Mean.of(lengths),
            "completion/stopped": Mean.of(rollout.stopped for rollout in rollouts),
            "completion/empty": Mean.of(not rollout.text.strip() for rollout in rollouts),
            "groups/all_equal": Mean.of(
                [len(rollouts) > 1 and len({rollout.token_ids for rollout in rollouts}) == 1]
            ),
            "groups/no_signal": Mean.of([not scored.has_signal]),
            "groups/below_min_std": Mean.of(is_small or [False]),
            **_of_totals(table, specs),
            **_of_rewards(table),
            **_of_gates(table, specs),
        },
        sums={
            "tokens/prompt": len(scored.group.prompt.token_ids),
            "tokens/completion": sum(lengths),
            **_of_counterfactuals(rollouts),
        },
    )


def _of_totals(table: RewardTable, specs: Mapping[str, RewardSpec]) -> dict[str, Mean]:
    """Return the shares of the completions without a total, by the reason for it."""
    counting = names_that_count(specs)
    failed = {failure.rollout_index for failure in table.failures if failure.reward in counting}
    lacking = {index for index, total in enumerate(table.totals) if total is None}
    return {
        "rewards/error_frac": Mean(len(failed), len(table.totals)),
        "rewards/all_abstained": Mean(len(lacking - failed), len(table.totals)),
    }


def _of_rewards(table: RewardTable) -> dict[str, Mean]:
    """Return each reward's mean, and the shares of the completions on which it failed or abstained."""
    means: dict[str, Mean] = {}
    failed = Counter(failure.reward for failure in table.failures)
    for name, column in table.columns.items():
        means[f"rewards/{name}/mean"] = Mean.of(column)
        means[f"rewards/{name}/failed"] = Mean(failed[name], len(column))
        means[f"rewards/{name}/abstained"] = Mean(column.count(None) - failed[name], len(column))
    return means


def _of_gates(table: RewardTable, specs: Mapping[str, RewardSpec]) -> dict[str, Mean]:
    """Return the share of the completions on which each gated reward counts."""
    return {
        f"rewards/{name}/open": Mean.of(gates_open(name, spec, table.columns))
        for name, spec in specs.items()
        if spec.only_if or spec.only_unless
    }


def _of_counterfactuals(rollouts: Iterable[Rollout]) -> dict[str, int]:
    """Return the tokens of counterfactuals, each counted once, though some belong to several rollouts."""
    others = {
        id(other): other for each in rollouts for some in each.counterfactuals.values() for other in some
    }
    num_tokens = sum(len(other.token_ids) for other in others.values())
    return {"tokens/counterfactual": num_tokens} if others else {}
