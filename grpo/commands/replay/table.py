"""A run's stored rollouts with the scores of another reward set, as matrices of groups by completions."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grpo.commands.replay.stats import Learning, advantages_of
from grpo.groups import RewardFailure, RewardTable, ScoredGroup
from rewards.builtin.keyframe import cited_moments

MAX_REASONS = 3
"""Different reasons that are kept of a reward's failures."""


@dataclass(kw_only=True)
class Failures:
    """How often a reward failed, and why at first."""

    count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Where each reason was met first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """Axes: P groups, G completions of the largest one; NaN is no value."""

    steps_P: np.ndarray
    first_rows_P: np.ndarray
    """Where a group starts in its step's file."""
    run_rewards: Mapping[str, np.ndarray]
    """The run's own raw values, by the reward's name."""
    run_totals_PG: np.ndarray
    run_advantages_PG: np.ndarray
    rewards: Mapping[str, np.ndarray]
    """Raw values of the replayed set."""
    parts: Mapping[str, np.ndarray]
    totals_PG: np.ndarray
    advantages_PG: np.ndarray
    tokens_PG: np.ndarray
    moments_PG: np.ndarray
    """How many moments a completion cites; 0 where they can't be read."""
    stopped_PG: np.ndarray
    texts_PG: np.ndarray
    """Numbers that are the same where the texts are."""
    failures: Mapping[str, Failures]

    @property
    def num_rollouts(self) -> int:
        return int((~np.isnan(self.tokens_PG)).sum())

    @property
    def right_PG(self) -> np.ndarray | None:
        """1 for a right answer, 0 for a wrong one, as a reward named `accuracy` says, if there is one."""
        values_PG = self.rewards.get("accuracy", self.run_rewards.get("accuracy"))
        return None if values_PG is None else np.where(np.isnan(values_PG), np.nan, values_PG > 0)


class ReplayTable:
    """Collects groups one by one; a completion takes eight bytes a column, whatever its length."""

    def __init__(self, learning: Learning) -> None:
        self._learning = learning
        self._columns: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._sizes: list[int] = []
        self._steps: list[int] = []
        self._first_rows: list[int] = []
        self._failures: dict[str, Failures] = {}

    def add(self, step: int, first_row: int, scored: ScoredGroup, table: RewardTable) -> None:
        """A group as the run scored it, and what the replayed rewards say about it."""
        if self._learning.kl_in_reward:
            table = with_kl(table, scored.table.parts["kl"])
        rollouts = scored.group.rollouts
        self._sizes.append(len(rollouts))
        self._steps.append(step)
        self._first_rows.append(first_row)
        columns = {
            **{f"run/{name}": column for name, column in scored.table.columns.items()},
            **{f"rewards/{name}": column for name, column in table.columns.items()},
            **{f"parts/{name}": column for name, column in table.parts.items()},
            "run_totals": scored.table.totals,
            "run_advantages": scored.advantages,
            "totals": table.totals,
            "tokens": [len(rollout.token_ids) for rollout in rollouts],
            "moments": [len(cited_moments(rollout)) for rollout in rollouts],
            "stopped": [rollout.stopped for rollout in rollouts],
            "texts": [text_number(rollout.text) for rollout in rollouts],
        }
        if self._columns and columns.keys() != self._columns.keys():
            named = sorted(name for name in columns.keys() ^ self._columns.keys())
            raise ValueError(
                f"step {step}: the rollouts files have different columns: {named[0].replace('run/', 'rewards/')}"
            )
        for name, column in columns.items():
            self._columns[name].extend(np.nan if value is None else value for value in column)
        for failure in table.failures:
            self._add_failure(step, failure)

    def matrices(self) -> Replayed:
        """All groups, with the advantages that the replayed totals would have had."""
        matrices = self._as_matrices()
        totals_PG, stopped_PG = matrices["totals"], matrices["stopped"]
        return Replayed(
            steps_P=np.array(self._steps),
            first_rows_P=np.array(self._first_rows),
            run_rewards=_starting_with("run/", matrices),
            run_totals_PG=matrices["run_totals"],
            run_advantages_PG=matrices["run_advantages"],
            rewards=_starting_with("rewards/", matrices),
            parts=_starting_with("parts/", matrices),
            totals_PG=totals_PG,
            advantages_PG=advantages_of(totals_PG, np.array(self._steps), stopped_PG, self._learning),
            tokens_PG=matrices["tokens"],
            moments_PG=matrices["moments"],
            stopped_PG=stopped_PG,
            texts_PG=matrices["texts"],
            failures=self._failures,
        )

    def _as_matrices(self) -> dict[str, np.ndarray]:
        sizes_P = np.array(self._sizes)
        groups_N = np.repeat(np.arange(len(sizes_P)), sizes_P)
        places_N = np.arange(sizes_P.sum()) - np.repeat(sizes_P.cumsum() - sizes_P, sizes_P)
        matrices = {}
        for name, column in self._columns.items():
            matrices[name] = np.full((len(sizes_P), sizes_P.max()), np.nan)
            matrices[name][groups_N, places_N] = column
        return matrices

    def _add_failure(self, step: int, failure: RewardFailure) -> None:
        failures = self._failures.setdefault(failure.reward, Failures())
        failures.count += 1
        if len(failures.reasons) < MAX_REASONS:
            failures.reasons.setdefault(failure.summary, f"step {step}, sample {failure.sample_id}")


def with_kl(table: RewardTable, kl: Sequence[float]) -> RewardTable:
    """The table with the run's own divergences in its totals, as `grpo.learner.kl_reward` puts them there."""
    totals = tuple(
        None if total is None else total + part for total, part in zip(table.totals, kl, strict=True)
    )
    return replace(table, parts={**table.parts, "kl": tuple(kl)}, totals=totals)


def text_number(text: str) -> int:
    """The same for equal texts, and for hardly any others: 48 bits, which a float64 holds exactly."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=6).digest(), "big")


def _starting_with(prefix: str, matrices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): each for name, each in matrices.items() if name.startswith(prefix)}
