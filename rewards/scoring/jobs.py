"""Calls of rewards: in supervised worker processes (`grpo/workers/`), or in this one.

A hang or a crash costs what its call was about: one rollout, or a group where the reward looks at one as a whole. A
reward that has been quick so far gets the rollouts of a group in one call; if that fails, each in a call of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from grpo.groups import Group
from grpo.workers.memory_file import Place
from grpo.workers.pool import CallFailed, CallFuture, Pool, PoolLost
from grpo.workers.worker import Function
from rewards.scoring.calling import Failed, Result, TrainerState, call, call_async, raised
from rewards.scoring.loading import is_builtin, load_reward
from rewards.scoring.payloads import FramesNeeded, Payloads, load_parts
from rewards.scoring.specs import Reward, RewardSpec, WorkerSettings

QUICK_S, QUICK_LIMIT_S = 0.05, 0.5
"""What a group's rollouts take together if their reward is quick, and when they are no longer waited for together."""
OBJECT_FRAC = 0.25
"""An object's calls wait for each other: one that takes so much of the time limit has failed, so that the others get
theirs."""


@dataclass(eq=False)
class Job:
    """A reward's scoring of a group."""

    reward_index: int
    group: Group
    payloads: Payloads
    state: TrainerState
    lock: threading.Condition
    on_done: Callable[[], None]
    results: list[Result] = field(init=False)
    """The results by rollout; `missing` says which are still to come, since None is a result."""
    missing: set[int] = field(init=False)
    calls: list[CallFuture] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = len(self.group.rollouts)
        self.results, self.missing = [None] * size, set(range(size))

    def fill(self, indices: Sequence[int], results: Sequence[Result]) -> None:
        """Take results; the first one for a rollout stays."""
        with self.lock:
            if not self.missing:
                return
            for index, result in zip(indices, results, strict=True):
                if index in self.missing:
                    self.results[index] = result
            self.missing.difference_update(indices)
            if not self.missing:
                self.on_done()


class Calls:
    """The calls of a run's rewards. Close it, or its processes live as long as this one."""

    def __init__(self, rewards: Sequence[Reward], pool: Pool | None) -> None:
        """pool: where the rewards' functions are loaded, in their order; None calls all of them in this process."""
        self.rewards, self.pool = rewards, pool
        self.seconds: dict[int, float] = {}
        """How long each reward, by its index, takes for a rollout, or for a group if it looks at one as a whole;
        smoothed."""
        self.valued_at: dict[int, float] = {}
        """When each reward gave its last value."""
        self.error: Exception | None = None
        self._read_frames: set[int] = set()
        """The rewards that have looked at frames."""

    @property
    def num_deaths(self) -> int:
        """The number of reward workers that have ended by themselves so far."""
        return self.pool.num_deaths if self.pool else 0

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()

    def make(self, job: Job) -> None:
        """Have the job's results filled in: now, or by and by from another thread."""
        reward, everything = self.rewards[job.reward_index], range(len(job.group.rollouts))
        if self.pool is None or reward.is_light:
            began = time.monotonic()
            results = call(reward, job.group.rollouts, job.state)
            self._measure(job.reward_index, time.monotonic() - began, len(results))
            job.fill(everything, results)
            return
        expected_s = len(everything) * self.seconds.get(job.reward_index, QUICK_S)
        is_quick = expected_s < QUICK_S and not reward.has_state and not reward.is_async
        is_whole = reward.calling != "rollout" or is_quick
        for indices in [everything] if is_whole else [[index] for index in everything]:
            self._submit(self.pool, job, indices)

    def drop(self, job: Job) -> None:
        """Nobody waits for the job's results any more."""
        if self.pool is not None:
            self.pool.cancel(job.calls)

    def _submit(self, pool: Pool, job: Job, indices: Sequence[int]) -> None:
        reward = self.rewards[job.reward_index]
        is_several = reward.calling == "rollout" and len(indices) > 1
        rollouts = [job.group.rollouts[index] for index in indices]
        with_frames = job.reward_index in self._read_frames
        try:
            parts = [[each] for each in rollouts] if reward.calling == "rollout" else [rollouts]
            place = job.payloads.place_of(parts, with_frames=with_frames)
        except Exception as error:
            # A column that can't be sent.
            job.fill(indices, [raised(error)] * len(indices))
            return
        limit_s = QUICK_LIMIT_S if is_several else None
        if reward.has_state and not reward.is_async:
            limit_s = OBJECT_FRAC * reward.spec.timeout_s
        args = (place, job.state)
        future = pool.submit(job.reward_index, args, limit_s=limit_s, label=f"rewards.{reward.name}")
        job.calls.append(future)
        future.add_done_callback(partial(self._take, pool, job, indices))
        if not job.missing:
            # It was dropped meanwhile.
            pool.cancel([future])

    def _take(self, pool: Pool, job: Job, indices: Sequence[int], future: Future[Any]) -> None:
        """Called by the pool's thread."""
        if future.cancelled():
            return
        try:
            scored = future.result()
        except PoolLost as error:
            self.error = error
            return
        except CallFailed as error:
            if self.rewards[job.reward_index].calling == "rollout" and len(indices) > 1:
                for index in indices:
                    self._submit(pool, job, [index])
            else:
                job.fill(indices, [self._failure_of(error)] * len(indices))
            return
        if scored is None:
            self._read_frames.add(job.reward_index)
            self._submit(pool, job, indices)
            return
        results, seconds = scored
        self._measure(job.reward_index, seconds, len(results))
        job.fill(indices, results)

    def _measure(self, reward_index: int, seconds: float, num_results: int) -> None:
        if self.rewards[reward_index].calling == "rollout":
            seconds /= num_results
        self.seconds[reward_index] = 0.8 * self.seconds.get(reward_index, seconds) + 0.2 * seconds
        self.valued_at[reward_index] = time.monotonic()

    def _failure_of(self, error: CallFailed) -> Failed:
        match error.kind:
            case "raised":
                return Failed("raised", str(error).strip().splitlines()[-1], str(error))
            case "late":
                return ended("late", f"{error}; an object may take a quarter of timeout_s for each call")
            case "memory":
                assert self.pool is not None
                limit = f"rewards_workers.memory_gib={self.pool.memory_gib:g}"
                return ended("died", f"the process of the reward was killed: more than {limit}")
            case _:
                return ended("died", f"the process of the reward {error}")


def ended(kind: Literal["late", "died"], why: str) -> Failed:
    """The failure of a call that left no traceback."""
    name = "TimeoutError" if kind == "late" else "RewardProcessError"
    return Failed(kind, f"{name}: {why}", f"{name}: {why}")


Scored = tuple[list[Result], float]
"""A call's results, and how long it took."""


def start_pool(specs: Mapping[str, RewardSpec], settings: WorkerSettings) -> tuple[Pool, list[Reward]]:
    """A pool in which rewards are loaded, and what they declare; ValueError if they don't load there."""
    names = ", ".join(name for name, spec in specs.items() if not is_builtin(name, spec))
    pool = Pool(
        f"the processes of the rewards {names}".rstrip(),
        partial(load_functions, specs),
        base_workers=min(settings.max_workers, max(2, min(4, os.cpu_count() or 1))),
        max_workers=settings.max_workers,
        memory_gib=settings.memory_gib,
    )
    try:
        return pool, pool.wait_until_ready()
    except PoolLost as error:
        raise ValueError(str(error)) from None


def load_functions(specs: Mapping[str, RewardSpec]) -> list[Function]:
    """The functions that the workers run: the rewards in their order."""
    functions, folder = [], os.getcwd()
    for name, spec in specs.items():
        reward = load_reward(name, spec)
        # The next one's path starts there, wherever this one's import went.
        os.chdir(folder)
        functions.append(
            Function(
                call=partial(_score_async if reward.is_async else _score, reward),
                is_resident=reward.has_state or reward.is_async,
                about=replace(reward, fn=None),
            )
        )
    return functions


def _score(reward: Reward, args: tuple[Place, TrainerState]) -> Scored | None:
    """The results of one call; None if the reward looks at frames, which it was not known to do."""
    (place, state), results, seconds = args, [], 0.0
    for rollouts in load_parts(place):
        began = time.monotonic()
        try:
            results += call(reward, rollouts, state)
        except FramesNeeded:
            return None
        seconds += time.monotonic() - began
    return results, seconds


async def _score_async(reward: Reward, args: tuple[Place, TrainerState]) -> Scored | None:
    """The results of one call of a coroutine; None as for `_score`."""
    (place, state), began = args, time.monotonic()
    [rollouts] = load_parts(place)
    try:
        results = await call_async(reward, rollouts, state)
    except FramesNeeded:
        return None
    return results, time.monotonic() - began
