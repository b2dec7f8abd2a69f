"""A run's stored rollouts with the scores of another reward set: a data frame with a row for each completion.

Its columns, all of float64, where NaN is no value:

- `step`, `group` (counted over all steps), `rollout` (its place in the group), `row` (its place in the step's file)
- `run/NAME`, `run_total`, `run_advantage`: the run's own raw values, and what they came to
- `raw/NAME`, `parts/NAME`, `total`, `advantage`: the replayed set's raw values, what they add, what that comes to
- `tokens`, `stopped`, `moments` (how many it cites, 0 where they can't be read), `text` (equal for equal texts)
- `right`: 1 for a right answer, 0 for a wrong one, as a reward named `accuracy` says, if there is one
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from grpo.groups import RewardTable, ScoredGroup
from grpo.learner.advantages import Moments, as_totals
from rewards.builtin.keyframe import cited_moments

MAX_REASONS = 3
"""Different reasons that are kept of a reward's failures."""

ToAdvantages = Callable[..., np.ma.MaskedArray]
"""`grpo.learner.advantages.advantages_of` with the settings of a run."""
Groups = Sequence[tuple[int, ScoredGroup]]
"""Groups of one step, each behind its first row in the step's file."""


class Batch(NamedTuple):
    """Some groups as the run scored them, and what the replayed rewards say about each."""

    step: int
    groups: Groups
    tables: Sequence[RewardTable]


@dataclass(frozen=True, eq=False)
class Replayed:
    """All that was scored, and how often each reward failed, with its first reasons and where these were met."""

    completions: pd.DataFrame
    failures: dict[str, dict[str, Any]]


def collect(batches: Iterable[Batch], to_advantages: ToAdvantages, *, stored: Sequence[str] = ()) -> Replayed:
    """All batches, with the advantages that the replayed totals would have had.

    stored: the parts that the reference gave in the run (`LossConfig.reference_parts`), which the totals hold as they
    were: a replay has no reference.
    """
    frames: list[pd.DataFrame] = []
    failures: dict[str, dict[str, Any]] = {}
    num_groups = 0
    for batch in batches:
        frames.append(_frame(batch, num_groups, stored=stored))
        num_groups += len(batch.groups)
        _add_failures(failures, batch)
        if len(different := frames[0].columns.symmetric_difference(frames[-1].columns)):
            name = str(different[0]).replace("run/", "rewards/")
            raise ValueError(f"step {batch.step}: the rollouts files have different columns: {name}")
    completions = pd.concat(frames, ignore_index=True)
    for part in stored:
        # As grpo.learner.reference_reward puts it there.
        completions["total"] += completions[f"parts/{part}"]
    completions["advantage"] = advantages(completions, to_advantages)
    accuracy = completions.get("raw/accuracy", completions.get("run/accuracy", np.nan))
    completions["right"] = np.where(np.isnan(accuracy), np.nan, np.greater(accuracy, 0))
    return Replayed(completions, failures)


def advantages(completions: pd.DataFrame, to_advantages: ToAdvantages) -> pd.Series:
    """What training makes of each step's totals."""
    of_steps = []
    for _, rows in completions.groupby("step"):
        # A group that is smaller than the largest one is filled up with NaN.
        totals_PG, stopped_PG = (
            rows.pivot(index="group", columns="rollout", values=name) for name in ("total", "stopped")
        )
        totals = as_totals(totals_PG)
        batch = Moments(totals.mean(), totals.std())
        advantages_PG = to_advantages(totals, stopped_PG.to_numpy() == 1, batch=batch).filled(np.nan)
        of_steps.append(pd.Series(advantages_PG[stopped_PG.notna()], index=rows.index))
    return pd.concat(of_steps)


def _frame(batch: Batch, first_group: int, *, stored: Sequence[str]) -> pd.DataFrame:
    columns = defaultdict[str, list[Any]](list)
    for group, ((first_row, scored), table) in enumerate(
        zip(batch.groups, batch.tables, strict=True), first_group
    ):
        rollouts = scored.group.rollouts
        of_group = {
            "step": [batch.step] * len(rollouts),
            "group": [group] * len(rollouts),
            "rollout": range(len(rollouts)),
            "row": range(first_row, first_row + len(rollouts)),
            **{f"run/{name}": column for name, column in scored.table.columns.items()},
            "run_total": scored.table.totals,
            "run_advantage": scored.advantages,
            **{f"raw/{name}": column for name, column in table.columns.items()},
            **{f"parts/{name}": column for name, column in table.parts.items()},
            **{f"parts/{part}": scored.table.parts[part] for part in stored},
            "total": table.totals,
            "tokens": [len(rollout.token_ids) for rollout in rollouts],
            "stopped": [rollout.stopped for rollout in rollouts],
            "moments": [len(cited_moments(rollout)) for rollout in rollouts],
            # In place of the text, which would take much memory: a number that a float64 holds exactly.
            "text": [hash(rollout.text) % 2**53 for rollout in rollouts],
        }
        for name, column in of_group.items():
            columns[name] += column
    return pd.DataFrame(columns, dtype=float)


def _add_failures(failures: dict[str, dict[str, Any]], batch: Batch) -> None:
    for failure in (failure for table in batch.tables for failure in table.failures):
        found = failures.setdefault(failure.reward, {"count": 0, "reasons": {}})
        found["count"] += 1
        if len(found["reasons"]) < MAX_REASONS:
            found["reasons"].setdefault(failure.summary, f"step {batch.step}, sample {failure.sample_id}")
