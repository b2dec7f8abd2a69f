"""Scores groups with the rewards that a config names: the side of the rewards that the trainer sees.

A step asks for a `Scoring`, adds groups as the engine finishes them, and takes their tables at the end. Rewards run
meanwhile in worker processes (`workers/`); `rewards_workers.max_workers=0` runs them here.

A value that a reward returned on purpose is data, None included: "not applicable here", which adds
nothing to the rollout's total. An exception, a value that is no finite number, a list of the
wrong length, a time-out or a crash is a *failure*: never a 0, but a rollout without a total, which takes no part in
the update. So a total is None exactly where a reward that counts failed: one with a weight, or one that gates such
a reward. One that is only watched (weight 0) costs no completion.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from grpo.groups import Group, RewardFailure, RewardTable, Sample
from rewards import Counterfactual, hostile
from rewards.scoring.cache import SLOW_S, RewardCache
from rewards.scoring.calling import call, failures_in, outcomes_of
from rewards.scoring.compose import check_specs, names_that_count, parts_of, totals_of
from rewards.scoring.loading import load_reward, required_columns
from rewards.scoring.specs import Outcome, Reward, RewardSpec, WorkerSettings
from rewards.scoring.workers.jobs import Job, Payload
from rewards.scoring.workers.pool import Pool


def load_rewards(
    specs: Mapping[str, RewardSpec],
    workers: WorkerSettings | None = None,
    *,
    normalise: bool = False,
) -> RewardSet:
    """Find and check the rewards of a config; ValueError or FileNotFoundError names the key.

    workers: None scores in this process. normalise: see `compose.parts_of`.
    """
    check_specs(specs)
    rewards = [load_reward(name, spec) for name, spec in specs.items()]
    return RewardSet(rewards, workers or WorkerSettings(max_workers=0), normalise=normalise)


class RewardSet:
    """The rewards of a run. Close it, or its processes live as long as this one."""

    def __init__(
        self, rewards: Sequence[Reward], workers: WorkerSettings, *, normalise: bool = False
    ) -> None:
        self.rewards, self.normalise = tuple(rewards), normalise
        self.specs = {reward.name: reward.spec for reward in rewards}
        self.cache = RewardCache()
        self._pool: Pool | None = None
        self._settings = workers

    @property
    def counterfactuals(self) -> tuple[Counterfactual, ...]:
        """What the engine has to sample beside each group."""
        return tuple(dict.fromkeys(each for reward in self.rewards for each in reward.counterfactuals))

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long each reward's call took lately; only of rewards that ran in workers."""
        measured = self._pool.seconds if self._pool else {}
        return {self.rewards[index].name: seconds for index, seconds in dict(measured).items()}

    @property
    def num_deaths(self) -> int:
        """How many reward processes ended by themselves so far, their calls made again."""
        return self._pool.num_deaths if self._pool else 0

    def scoring(self, step: int = 0, *, in_step: bool = True) -> Scoring:
        """A step's scoring, to which groups are added as they come.

        in_step: the time limits are for all of it, since a step waits; else for each value after another.
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
            columns = self._outcomes(index, probe_groups(reward, samples))
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
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def pool(self) -> Pool | None:
        """The worker processes, started on first use; None where rewards run in this one."""
        if self._pool is None and self._settings.max_workers:
            pool = Pool(self.rewards, self._settings)
            pool.start()
            self._pool = pool
        return self._pool

    def _outcomes(self, reward_index: int, groups: Sequence[Group]) -> list[list[Outcome]]:
        scoring = self.scoring(in_step=False)
        jobs = [scoring.start(reward_index, group) for group in groups]
        scoring.wait()
        name = self.rewards[reward_index].name
        return [outcomes_of(name, group, job.results) for group, job in zip(groups, jobs, strict=True)]


class Scoring:
    """The rewards of one step's groups, under way."""

    def __init__(self, rewards: RewardSet, step: int, *, in_step: bool) -> None:
        self._set, self._step, self._in_step = rewards, step, in_step
        self._pool = rewards.pool()
        self._finished = threading.Condition()
        self._num_left = 0
        self._early: set[int] = set()
        self._jobs: dict[tuple[int, int], Job] = {}
        self._groups: list[Group] = []  # held, so that the ids above stay theirs

    def add(self, group: Group) -> None:
        """Start the rewards that need nothing but the group itself; called while the engine samples others."""
        early = [index for index, each in enumerate(self._set.rewards) if not each.counterfactuals]
        self._early.add(id(group.prompt))
        self._submit(self._start_all(early, group))

    def tables(self, groups: Sequence[Group]) -> list[RewardTable]:
        """Start what is left, wait, and put each group's table together.

        The groups are those added before (told by their prompts), or the same with counterfactuals.
        """
        everything = range(len(self._set.rewards))
        started = [self._start_all(everything, group) for group in groups]
        self._submit([job for jobs in started for job in jobs])
        self.wait()
        return [self._table(group) for group in groups]

    def start(self, reward_index: int, group: Group) -> Job:
        """A job of one reward, for those who want no table."""
        self._submit(self._start_all([reward_index], group))
        return self._jobs[self._key(group), reward_index]

    def wait(self) -> None:
        """Until every job is done, or its reward's time limit from now is over."""
        if self._pool is not None:
            self._pool.expire([*self._jobs.values()], in_step=self._in_step)
            with self._finished:
                while not self._finished.wait_for(lambda: not self._num_left, timeout=1.0):
                    if self._pool.error is not None:
                        break
            if self._pool.error is not None:
                raise RuntimeError("the reward workers' own thread died") from self._pool.error
        for (_, reward_index), job in self._jobs.items():
            self._remember(self._set.rewards[reward_index], reward_index, job)

    def _key(self, group: Group) -> int:
        """What a group goes by: counterfactuals make another one of it, its prompt stays the same object."""
        return id(group.prompt) if id(group.prompt) in self._early else id(group)

    def _start_all(self, reward_indices: Sequence[int], group: Group) -> list[Job]:
        """Jobs that are not there yet; those that need a call are returned."""
        payload, key = Payload(group), self._key(group)
        new = {
            index: Job(index, payload, self._count_down)
            for index in reward_indices
            if (key, index) not in self._jobs
        }
        self._groups.append(group)
        self._jobs.update({(key, index): job for index, job in new.items()})
        with self._finished:
            self._num_left += sum(bool(job.missing) for job in new.values())
        for index, job in new.items():
            self._answer_without_a_call(self._set.rewards[index], index, job)
        return [job for job in new.values() if job.missing]

    def _submit(self, jobs: Sequence[Job]) -> None:
        if self._pool is not None:
            self._pool.submit(jobs)
            return
        for job in jobs:
            results = call(self._set.rewards[job.reward_index], job.payload.group.rollouts)
            job.fill(range(len(job.results)), results)

    def _count_down(self) -> None:
        """Told by each job when it is done. Whoever waits is woken once, at the end: threads that take turns over every
        job would spend more time on that than on the jobs."""
        with self._finished:
            self._num_left -= 1
            if not self._num_left:
                self._finished.notify()

    def _is_cached(self, reward: Reward, reward_index: int) -> bool:
        if reward.spec.cache is not None:
            return reward.spec.cache
        seconds = self._pool.seconds.get(reward_index, 0.0) if self._pool else 0.0
        return seconds > SLOW_S and not reward.has_state

    def _answer_without_a_call(self, reward: Reward, reward_index: int, job: Job) -> None:
        """A reward of other tasks abstains; what was scored before is known."""
        sample = job.payload.group.prompt.sample
        if sample.task not in (reward.spec.tasks or [sample.task]):
            job.fill(range(len(job.results)), [None] * len(job.results))
        if not job.missing or not self._is_cached(reward, reward_index):
            return
        for index, key in enumerate(self._set.cache.keys(reward, job.payload.group.rollouts)):
            try:
                job.fill([index], [self._set.cache.get(key)])
            except KeyError:
                continue

    def _remember(self, reward: Reward, reward_index: int, job: Job) -> None:
        if self._is_cached(reward, reward_index):
            for key, result in zip(
                self._set.cache.keys(reward, job.payload.group.rollouts), job.results, strict=True
            ):
                self._set.cache.put(key, result)

    def _table(self, group: Group) -> RewardTable:
        outcomes = {
            reward.name: outcomes_of(reward.name, group, self._jobs[self._key(group), index].results)
            for index, reward in enumerate(self._set.rewards)
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
    totals = totals_of(parts, [index in failed for index in range(len(next(iter(columns.values()))))])
    return RewardTable(columns=columns, parts=parts, totals=totals, failures=tuple(failures))


def probe_groups(reward: Reward, samples: Sequence[Sample] | None) -> list[Group]:
    """What a reward is probed with. A TRL reward gets a string in each column that it cannot do without."""
    if samples is not None:
        groups = [group for sample in samples for group in hostile.groups_of(sample)]
    else:
        groups = hostile.groups(dict.fromkeys(required_columns(reward.fn, reward.spec.args), "B"))
    groups = [hostile.with_counterfactuals(group, reward.counterfactuals) for group in groups]
    return [hostile.first_two(groups[0])] if reward.is_expensive else groups
