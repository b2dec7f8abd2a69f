"""Scores groups with the rewards that a config names.

A value that a reward returned on purpose is data, None included: "not applicable here", which adds
nothing to the rollout's total. An exception, a value that is no finite number, or a list of the
wrong length is a *failure*: never a 0, but a rollout without a total, which takes no part in the
update. So a total is None exactly where some reward, of whatever weight, failed.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from grpo.groups import Group, Rollout, Sample
from rewards import hostile
from rewards.loading import (
    Calling,
    calling_of,
    check_signature,
    did_you_mean,
    find_function,
    required_columns,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSpec:
    """A reward as configured, under its name."""

    fn: str | None = None
    """None: the built-in of that name."""
    weight: float = 1.0
    """0 keeps the column and adds nothing."""
    args: dict[str, Any] = field(default_factory=dict)
    only_if: str | None = None
    """Counts only on rollouts where the reward of this name has a raw value above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """A reward ready to run."""

    name: str
    fn: Callable[..., Any]
    calling: Calling
    args: Mapping[str, Any]
    weight: float
    only_if: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardFailure:
    """Why a reward has no value for a rollout."""

    reward: str
    sample_id: str
    rollout_index: int
    traceback: str

    @property
    def summary(self) -> str:
        """What was wrong, in one line."""
        return self.traceback.strip().splitlines()[-1]


Outcome = float | None | RewardFailure
# A plugin that calls sys.exit() must not end the run, let alone with status 0.
FAILURES = (Exception, SystemExit)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """What the rewards say about one group, a value per rollout."""

    columns: Mapping[str, tuple[float | None, ...]]
    """Raw values by the reward's name, None where it abstained or failed."""
    totals: tuple[float | None, ...]
    """Weighted sums, None where a reward failed."""
    failures: tuple[RewardFailure, ...]


@dataclass(frozen=True, slots=True)
class RewardSet:
    """The rewards of a run."""

    rewards: tuple[Reward, ...]

    def score(self, groups: Sequence[Group]) -> list[RewardTable]:
        """A table for each group; groups are independent of each other."""
        return [score_group(self.rewards, group) for group in groups]

    def probe(self, samples: Sequence[Sample] | None = None) -> None:
        """Run every reward on hostile completions; ValueError names the first reward that fails.

        The samples are synthetic unless some of the run's own are given, which rewards that read
        dataset columns need; their clip is a synthetic one either way.
        """
        for reward in self.rewards:
            for group in probe_groups(reward, samples):
                for failure in failures_in(run(reward, group)):
                    text = group.rollouts[failure.rollout_index].text
                    raise ValueError(
                        f"rewards.{reward.name}: {failure.summary} (probed with sample {failure.sample_id}, "
                        f"completion {text[:60]!r}, {len(text)} characters)"
                    )


def load_rewards(specs: Mapping[str, RewardSpec]) -> RewardSet:
    """Find and check the rewards of a config; ValueError or FileNotFoundError names the key."""
    for name in specs:
        check_gate(name, specs)
    return RewardSet(tuple(load_reward(name, spec) for name, spec in specs.items()))


def load_reward(name: str, spec: RewardSpec) -> Reward:
    """One reward, without a look at the others."""
    key = f"rewards.{name}"
    if not math.isfinite(spec.weight):
        raise ValueError(f"{key}.weight: {spec.weight} is no finite number")
    fn = find_function(name if spec.fn is None else spec.fn, key=key)
    check_signature(fn, spec.args, key=key)
    return Reward(
        name=name,
        fn=fn,
        calling=calling_of(fn),
        args=dict(spec.args),
        weight=float(spec.weight),
        only_if=spec.only_if,
    )


def check_gate(name: str, specs: Mapping[str, RewardSpec]) -> None:
    """Raise ValueError unless the chain of `only_if` that starts here ends."""
    chain = [name]
    while (gate := specs[chain[-1]].only_if) is not None:
        if gate not in specs:
            raise ValueError(
                f"rewards.{chain[-1]}.only_if: no reward named {gate!r}{did_you_mean(gate, specs)}"
            )
        if gate in chain:
            raise ValueError(f"rewards.{name}.only_if: goes round in a circle: {' -> '.join([*chain, gate])}")
        chain.append(gate)


def score_group(rewards: Sequence[Reward], group: Group) -> RewardTable:
    """Values, totals and failures of one group."""
    outcomes = {reward.name: run(reward, group) for reward in rewards}
    failures = [failure for column in outcomes.values() for failure in failures_in(column)]
    columns = {
        name: tuple(None if isinstance(each, RewardFailure) else each for each in column)
        for name, column in outcomes.items()
    }
    failed = {failure.rollout_index for failure in failures}
    totals = [None if g in failed else total(rewards, columns, g) for g in range(len(group.rollouts))]
    return RewardTable(columns=columns, totals=tuple(totals), failures=tuple(failures))


def total(rewards: Sequence[Reward], columns: Mapping[str, Sequence[float | None]], index: int) -> float:
    """Plain weighted sum for one rollout. Not normalised: an arm of an ablation rescales no other reward."""
    values = {name: column[index] for name, column in columns.items()}
    counted = [reward for reward in rewards if reward.only_if is None or (values[reward.only_if] or 0.0) > 0]
    return sum((reward.weight * (values[reward.name] or 0.0) for reward in counted), start=0.0)


def run(reward: Reward, group: Group) -> list[Outcome]:
    """A reward's values for a group, with a failure where there is no value."""
    if reward.calling == "rollout":
        results = [value_or_traceback(reward, rollout) for rollout in group.rollouts]
    else:
        results = values_or_tracebacks(reward, group.rollouts)
    return [
        RewardFailure(
            reward=reward.name, sample_id=group.prompt.sample.id, rollout_index=index, traceback=result
        )
        if isinstance(result, str)
        else result
        for index, result in enumerate(results)
    ]


def value_or_traceback(reward: Reward, rollout: Rollout) -> float | None | str:
    """Value of a reward that looks at one rollout."""
    try:
        return as_value(reward.fn(rollout, **reward.args))
    except FAILURES:
        return traceback.format_exc()


def values_or_tracebacks(reward: Reward, rollouts: Sequence[Rollout]) -> list[float | None | str]:
    """Values of a reward that looks at a sample's rollouts together; it fails for all of them or for some."""
    try:
        values = (
            reward.fn(rollouts, **reward.args)
            if reward.calling == "group"
            else reward.fn(**{**trl_arguments(rollouts), **reward.args})
        )
        if not isinstance(values, list | tuple) or len(values) != len(rollouts):
            length = f" of {len(values)}" if isinstance(values, list | tuple) else ""
            raise TypeError(f"returned {type(values).__name__}{length} for a list of {len(rollouts)}")
    except FAILURES:
        return [traceback.format_exc()] * len(rollouts)
    return [checked_value(value) for value in values]


def checked_value(raw: object) -> float | None | str:
    try:
        return as_value(raw)
    except FAILURES:
        return traceback.format_exc()


def as_value(raw: object) -> float | None:
    """A returned value as a float, None as None; raises if it is no finite number."""
    if raw is None:
        return None
    if not isinstance(raw, Real):
        raise TypeError(f"returned {type(raw).__name__}, not a number or None")
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, not a finite number")
    return value


def trl_arguments(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    """The lists that a TRL reward is called with, one entry per completion.

    `prompts` holds the question texts and `completions` plain texts, as for TRL's non-conversational
    data sets. https://huggingface.co/docs/trl/grpo_trainer#using-a-custom-reward-function
    """
    sample = rollouts[0].sample
    columns = {
        **sample.columns,
        "question": sample.question,
        "answer": sample.answer,
        "options": list(sample.options),
        "task": sample.task,
        "prompts": sample.question,
    }
    return {name: [value] * len(rollouts) for name, value in columns.items()} | {
        "completions": [rollout.text for rollout in rollouts],
        "completion_ids": [list(rollout.token_ids) for rollout in rollouts],
    }


def failures_in(outcomes: Iterable[Outcome]) -> list[RewardFailure]:
    return [outcome for outcome in outcomes if isinstance(outcome, RewardFailure)]


def probe_groups(reward: Reward, samples: Sequence[Sample] | None) -> list[Group]:
    """What a reward is probed with. A TRL reward gets a string in each column that it cannot do without."""
    if samples is not None:
        return [group for sample in samples for group in hostile.groups_of(sample)]
    return hostile.groups(dict.fromkeys(required_columns(reward.fn, reward.args), "B"))
