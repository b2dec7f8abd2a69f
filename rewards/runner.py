"""Scores groups with the rewards that a config names.

A value that a reward returned on purpose is data, None included: "not applicable here", which adds
nothing to the rollout's total. An exception, a value that is no finite number, or a list of the
wrong length is a *failure*: never a 0, but a rollout without a total, which takes no part in the
update. So a total is None exactly where some reward, of whatever weight, failed.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from grpo.groups import Group, Rollout, Sample
from rewards import hostile
from rewards.compose import check_specs, parts_of, totals_of
from rewards.loading import calling_of, check_signature, find_function, required_columns
from rewards.specs import Outcome, Reward, RewardFailure, RewardSpec, RewardTable

# A plugin that calls sys.exit() must not end the run, let alone with status 0.
FAILURES = (Exception, SystemExit)


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
    check_specs(specs)
    return RewardSet(tuple(load_reward(name, spec) for name, spec in specs.items()))


def load_reward(name: str, spec: RewardSpec) -> Reward:
    """One reward, without a look at the others."""
    key = f"rewards.{name}"
    fn = find_function(name if spec.fn is None else spec.fn, key=key)
    check_signature(fn, spec.args, key=key)
    return Reward(name=name, fn=fn, calling=calling_of(fn), spec=spec)


def score_group(rewards: Sequence[Reward], group: Group, step: int = 0) -> RewardTable:
    """Values, parts, totals and failures of one group."""
    outcomes = {reward.name: run(reward, group) for reward in rewards}
    return make_table({reward.name: reward.spec for reward in rewards}, outcomes, step)


def make_table(
    specs: Mapping[str, RewardSpec], outcomes: Mapping[str, Sequence[Outcome]], step: int
) -> RewardTable:
    """A group's table from what its rewards came to."""
    failures = [failure for column in outcomes.values() for failure in failures_in(column)]
    columns = {
        name: tuple(None if isinstance(each, RewardFailure) else each for each in column)
        for name, column in outcomes.items()
    }
    num_rollouts = len(next(iter(columns.values())))
    failed = {failure.rollout_index for failure in failures}
    parts = parts_of(specs, columns, step)
    totals = totals_of(parts, [index in failed for index in range(num_rollouts)])
    return RewardTable(columns=columns, parts=parts, totals=totals, failures=tuple(failures))


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
