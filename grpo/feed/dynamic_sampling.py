"""Dynamic sampling: other groups in the place of those without signal, and a memory of questions that are solved.

A group whose totals are all equal has no gradient. Dynamic sampling (DAPO, arXiv 2503.14476) puts groups of other
questions in their place; the memory leaves out, for a while, questions that all completions got right or wrong.
Both change which questions a step sees, and nothing else; both are off by default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from grpo.config.schema import DynamicSamplingConfig
from grpo.groups import Batch, Group, RewardTable


@dataclass(frozen=True, slots=True)
class Sampled:
    """The groups that a step has sampled, with the batch that they come from and their reward tables."""

    batch: Batch
    groups: Sequence[Group]
    tables: Sequence[RewardTable]

    def flat_places(self, has_signal: Sequence[bool]) -> list[int]:
        """Return the places in the batch of groups without signal (`ScoredGroup.has_signal`).

        One in which a failed reward cost a total is never among them: the failure must not be lost with the group.
        """
        each = zip(self.batch.places, self.tables, has_signal, strict=True)
        return [place for place, table, signal in each if not (signal or _has_lost_totals(table))]

    def with_others(self, others: Sampled, *, but: Collection[int]) -> Sampled:
        """Replace groups by others except at some places, and add the samples that were lost with the others."""
        new = {place: index for index, place in enumerate(others.batch.places) if place not in but}
        chosen = [
            (others, new[place]) if place in new else (self, index)
            for index, place in enumerate(self.batch.places)
        ]
        batch = replace(
            self.batch,
            prompts=tuple(one.batch.prompts[index] for one, index in chosen),
            seeds=tuple(one.batch.seeds[index] for one, index in chosen),
            lost=self.batch.lost + others.batch.lost,
        )
        groups = [one.groups[index] for one, index in chosen]
        tables = [one.tables[index] for one, index in chosen]
        return Sampled(batch, groups, tables)


def _has_lost_totals(table: RewardTable) -> bool:
    return any(table.totals[failure.rollout_index] is None for failure in table.failures)


class DifficultyMemory:
    """The questions that are left out, until which step; the same in all processes, and part of checkpoints."""

    def __init__(self, config: DynamicSamplingConfig, *, steps_per_epoch: float) -> None:
        self.config = config
        self.skip_steps = config.skip_epochs * steps_per_epoch
        self._until: dict[str, float] = {}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Record the mean of `dynamic_sampling.reward` for each question of a step."""
        for sample_id, value in values.items():
            if value >= self.config.solved_from or value <= self.config.hopeless_to:
                self._until[sample_id] = step + self.skip_steps

    def leaves_out(self, sample_id: str, step: int) -> bool:
        return step <= self._until.get(sample_id, -1)

    def num_left_out(self, step: int) -> int:
        """Return the number of questions that are left out at a step."""
        return sum(step <= until for until in self._until.values())

    def state_dict(self) -> dict[str, float]:
        return dict(self._until)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._until = dict(state)


def means_of(groups: Sequence[Group], tables: Sequence[RewardTable], reward: str) -> dict[str, float]:
    """Return a reward's mean over each group, by the sample's id; groups where it has no value are left out."""
    means: dict[str, float] = {}
    for group, table in zip(groups, tables, strict=True):
        values = [value for value in table.columns[reward] if value is not None]
        if values:
            means[group.prompt.sample.id] = sum(values) / len(values)
    return means
