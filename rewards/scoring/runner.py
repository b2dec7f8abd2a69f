"""Scores groups with the rewards that a config names: the side of the rewards that the trainer sees.

A step asks for a `Scoring`, adds groups as the engine finishes them, and takes their tables at the end. Rewards run
meanwhile in worker processes (`grpo/workers/`), but for built-ins that take microseconds whatever the completion;
`rewards_workers.max_workers=0` runs all of them here.

A value that a reward returned on purpose is data, None included: "not applicable here", which adds
nothing to the rollout's total. An exception, a value that is no number or a huge one, a list of the
wrong length, a time-out or a crash is a *failure*: never a 0, but a rollout without a total, which takes no part in
its group's mean and std, nor in the update. So a total is None where a reward that counts failed (one with a weight,
or one that gates such a reward), and where all with a weight abstained. One that is only watched (weight 0) costs no
completion.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo.groups import Group, RewardFailure, RewardTable, Sample
from grpo.workers.pool import Pool
from rewards import Counterfactual, hostile
from rewards.scoring.calling import TrainerState, failures_in, outcomes_of
from rewards.scoring.compose import all_abstain, check_specs, names_that_count, parts_of, totals_of
from rewards.scoring.jobs import Calls, Job, ended, start_pool
from rewards.scoring.loading import is_builtin, load_reward
from rewards.scoring.payloads import Payloads
from rewards.scoring.specs import Outcome, Reward, RewardSpec, WorkerSettings


def load_rewards(
    specs: Mapping[str, RewardSpec],
    workers: WorkerSettings | None = None,
    *,
    normalise: bool = False,
    num_steps: int = 0,
) -> RewardSet:
    """Find and check the rewards of a config; ValueError or FileNotFoundError names the key.

    Code that is not ours is loaded in workers alone: its import may change whatever it likes in its process.

    workers: None scores in this process. normalise: see `compose.parts_of`. num_steps: of the run, for TRL rewards.
    """
    check_specs(specs)
    settings = workers or WorkerSettings(max_workers=0)
    rewards = {
        name: load_reward(name, spec)
        for name, spec in specs.items()
        if is_builtin(name, spec) or not settings.max_workers
    }
    pool = None
    if settings.max_workers and not all(name in rewards and rewards[name].is_light for name in specs):
        pool, declared = start_pool(specs, settings)
        rewards = {each.name: each for each in declared} | rewards
    return RewardSet([rewards[name] for name in specs], pool, normalise=normalise, num_steps=num_steps)


class RewardSet:
    """The rewards of a run. Close it, or its processes live as long as this one."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        pool: Pool | None = None,
        *,
        normalise: bool = False,
        num_steps: int = 0,
    ) -> None:
        """pool: where the rewards run, unless they are light; None: in this process."""
        self.rewards, self.normalise, self.num_steps = tuple(rewards), normalise, num_steps
        self.specs = {reward.name: reward.spec for reward in rewards}
        self.calls = Calls(self.rewards, pool)

    @property
    def counterfactuals(self) -> tuple[Counterfactual, ...]:
        """The sets of completions that the engine has to sample beside each group."""
        return tuple(dict.fromkeys(each for reward in self.rewards for each in reward.counterfactuals))

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long each reward's call took lately."""
        return {self.rewards[index].name: seconds for index, seconds in dict(self.calls.seconds).items()}

    @property
    def num_deaths(self) -> int:
        """The number of reward workers that have ended by themselves so far."""
        return self.calls.num_deaths

    def scoring(self, step: int = 0, *, in_step: bool = True) -> Scoring:
        """The scoring of a step's groups, which are added to it as they come.

        in_step: whether a step waits. A reward's time limit is then for all its values together, from the moment that
        they are waited for; otherwise for each value, from the one before.
        """
        return Scoring(self, step, in_step=in_step)

    def score(self, groups: Sequence[Group], step: int = 0) -> list[RewardTable]:
        """A table for each group; groups are independent of each other. step: for schedules of weights."""
        return self.scoring(step).tables(groups)

    def probe(self, samples: Sequence[Sample] | None = None) -> list[str]:
        """Run every reward on hostile completions; ValueError names the first reward that fails.

        The samples are synthetic unless some of the run's own are given, which rewards that read
        dataset columns need; their clip is a synthetic one either way. Returns the names of those that abstained
        on everything.
        """
        silent = []
        for index, reward in enumerate(self.rewards):
            columns = self.scoring(in_step=False).outcomes(index, probe_groups(reward, samples))
            if all(outcome is None for outcomes in columns for outcome in outcomes):
                silent.append(reward.name)
            for outcomes in columns:
                for failure in failures_in(outcomes):
                    text = failure.completion
                    raise ValueError(
                        f"rewards.{reward.name}: {failure.summary} (probed with sample {failure.sample_id}, "
                        f"completion {text[:60]!r}, {len(text)} characters)"
                    )
        return silent

    def close(self) -> None:
        self.calls.close()


class Scoring:
    """The rewards of one step's groups, under way."""

    def __init__(self, rewards: RewardSet, step: int, *, in_step: bool) -> None:
        self._set, self._step, self._in_step = rewards, step, in_step
        self._state = TrainerState(global_step=max(0, step - 1), max_steps=rewards.num_steps)
        self._calls, self._payloads = rewards.calls, Payloads()
        self._changed = threading.Condition()
        self._num_left = 0
        self._early: set[int] = set()
        self._jobs: dict[tuple[int, int], Job] = {}
        # Held, so that the ids above stay theirs.
        self._groups: list[Group] = []

    def add(self, group: Group) -> None:
        """Start the rewards that need nothing but the group itself; called while the engine samples others."""
        early = [index for index, each in enumerate(self._set.rewards) if not each.counterfactuals]
        self._early.add(id(group.prompt))
        self._start(early, group)

    def tables(self, groups: Sequence[Group]) -> list[RewardTable]:
        """Start what is left, wait, and put each group's table together.

        The groups are those added before (told by their prompts), or the same with counterfactuals.
        """
        for group in groups:
            self._start(range(len(self._set.rewards)), group)
        self.wait()
        return [self._table(group) for group in groups]

    def outcomes(self, reward_index: int, groups: Sequence[Group]) -> list[list[Outcome]]:
        """What one reward comes to for each group, for those who want no tables."""
        for group in groups:
            self._start([reward_index], group)
        self.wait()
        return [self._outcomes_of(reward_index, group) for group in groups]

    def wait(self) -> None:
        """Wait until every job is done, or the time limit of its reward, counted from now, is over."""
        began = time.monotonic()
        with self._changed:
            while self._num_left:
                left_s = self._drop_late(began)
                if self._calls.error is not None:
                    raise RuntimeError("the rewards' processes are lost") from self._calls.error
                if self._num_left:
                    self._changed.wait(timeout=min(left_s, 1.0))

    def _drop_late(self, began: float) -> float:
        """Fail the jobs whose time is over; seconds until the next one's is."""
        now, left_s = time.monotonic(), math.inf
        for job in [job for job in self._jobs.values() if job.missing]:
            limit_s = self._set.rewards[job.reward_index].spec.timeout_s
            valued_at = 0.0 if self._in_step else self._calls.valued_at.get(job.reward_index, 0.0)
            job_left_s = max(began, valued_at) + limit_s - now
            if job_left_s > 0:
                left_s = min(left_s, job_left_s)
                continue
            since = (
                f"{limit_s:g} s after the last rollout was sampled" if self._in_step else f"for {limit_s:g} s"
            )
            late = sorted(job.missing)
            job.fill(late, [ended("late", f"no value {since} (timeout_s)")] * len(late))
            self._calls.drop(job)
        return left_s

    def _key(self, group: Group) -> int:
        """The key of a group: counterfactuals make another object of it, while its prompt stays the same one."""
        return id(group.prompt) if id(group.prompt) in self._early else id(group)

    def _start(self, reward_indices: Sequence[int], group: Group) -> None:
        """Start the jobs that are not there yet; a reward of other tasks abstains."""
        key, task = self._key(group), group.prompt.sample.task
        self._groups.append(group)
        for index in reward_indices:
            if (key, index) in self._jobs:
                continue
            job = Job(index, group, self._payloads, self._state, self._changed, self._count_down)
            self._jobs[key, index] = job
            with self._changed:
                self._num_left += 1
            if task in (self._set.rewards[index].spec.tasks or [task]):
                self._calls.make(job)
            else:
                job.fill(range(len(job.results)), [None] * len(job.results))

    def _count_down(self) -> None:
        """Told by each job when it is done. Whoever waits is woken once, at the end: threads that take turns over every
        job would spend more time on that than on the jobs."""
        with self._changed:
            self._num_left -= 1
            if not self._num_left:
                self._changed.notify()

    def _outcomes_of(self, reward_index: int, group: Group) -> list[Outcome]:
        results = self._jobs[self._key(group), reward_index].results
        return outcomes_of(self._set.rewards[reward_index].name, group, results)

    def _table(self, group: Group) -> RewardTable:
        outcomes = {
            reward.name: self._outcomes_of(index, group) for index, reward in enumerate(self._set.rewards)
        }
        return make_table(self._set.specs, outcomes, self._step, normalise=self._set.normalise)


def make_table(
    specs: Mapping[str, RewardSpec],
    outcomes: Mapping[str, Sequence[Outcome]],
    step: int,
    *,
    normalise: bool = False,
) -> RewardTable:
    """A group's table from what its rewards came to."""
    columns = {
        name: tuple(None if isinstance(each, RewardFailure) else each for each in column)
        for name, column in outcomes.items()
    }
    failures = [failure for column in outcomes.values() for failure in failures_in(column)]
    counting = names_that_count(specs)
    failed = {failure.rollout_index for failure in failures if failure.reward in counting}
    parts = parts_of(specs, columns, step, normalise=normalise)
    abstentions = all_abstain(specs, columns, step)
    lacking = [index in failed or abstained for index, abstained in enumerate(abstentions)]
    totals = totals_of(parts, lacking)
    return RewardTable(columns=columns, parts=parts, totals=totals, failures=tuple(failures))


def probe_groups(
    reward: Reward, samples: Sequence[Sample] | None = None, columns: Mapping[str, Any] | None = None
) -> list[Group]:
    """What a reward is probed with: hostile completions of these samples, or of synthetic ones with these columns. A
    TRL reward gets a string in each column that it cannot do without."""
    if samples is not None:
        groups = [group for sample in samples for group in hostile.groups_of(sample)]
    else:
        groups = hostile.groups({**dict.fromkeys(reward.columns, "B"), **(columns or {})})
    groups = [hostile.with_counterfactuals(group, reward.counterfactuals) for group in groups]
    if reward.is_expensive:
        return [replace(groups[0], rollouts=groups[0].rollouts[:2])]
    return groups
