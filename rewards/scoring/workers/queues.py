"""What waits to be done by reward workers, and in which order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count

from rewards.scoring.specs import Reward
from rewards.scoring.workers.jobs import CallOut, Job

BUNDLE_S = 0.01
"""How long a bundle of calls should take."""


class Queues:
    """Rewards that are known to be fast share a queue; each other one has its own, so that none waits behind another
    that hangs."""

    def __init__(self, rewards: Sequence[Reward], max_workers: int) -> None:
        self.rewards, self.max_workers = rewards, max_workers
        self.seconds: dict[int, float] = {}
        """How long a reward takes for a rollout, or for a group if it looks at one as a whole; smoothed."""
        self._queues: dict[int | None, deque[CallOut]] = {}
        self._residents = [reward.has_state or reward.is_async for reward in rewards]
        self._ids = count()
        self._last_served = -2
        self.most_workers = max(1, 3 * max_workers // 4)
        """For a reward, while others wait."""

    def measured(self, reward_index: int, seconds: float, num_values: int = 1) -> None:
        """Take how long so many values took; those of a group come from one look at it."""
        count = num_values if self.rewards[reward_index].calling == "rollout" else 1
        mean, kept = seconds / count, 0.8**count
        self.seconds[reward_index] = kept * self.seconds.get(reward_index, mean) + (1 - kept) * mean

    def num_shared(self) -> int:
        """Calls that any worker could take."""
        return sum(len(queue) for key, queue in self._queues.items() if not self._is_resident(key))

    def others_wait(self, reward_index: int) -> bool:
        """Whether calls of other rewards wait for any worker."""
        return any(
            queue for key, queue in self._queues.items() if key != reward_index and not self._is_resident(key)
        )

    def of_residents(self) -> Iterator[tuple[int, deque[CallOut]]]:
        """Queues of rewards that live in a worker of their own."""
        yield from (
            (key, queue) for key, queue in [*self._queues.items()] if key is not None and self._residents[key]
        )

    def takes_one(self, job: Job) -> bool:
        """Whether its reward looks at each rollout alone."""
        return self.rewards[job.reward_index].calling == "rollout"

    def put_back(self, call: CallOut) -> None:
        self._queue_of(call.job.reward_index, alone=call.alone).appendleft(call)

    def add(self, job: Job, missing: Sequence[int], *, alone: bool = False) -> None:
        """Queue what a job lacks: in one call, or one per rollout where that is slow or to be done alone."""
        reward = self.rewards[job.reward_index]
        is_slow = self.seconds.get(job.reward_index, 0.0) > BUNDLE_S
        parts = [tuple(range(len(job.results)))]
        if reward.calling == "rollout":
            parts = [(i,) for i in missing] if alone or is_slow or reward.is_async else [tuple(missing)]
        queue = self._queue_of(job.reward_index, alone=alone)
        for indices in parts:
            queue.append(CallOut(id=next(self._ids), job=job, indices=indices, alone=alone))

    def _queue_of(self, reward_index: int, *, alone: bool = False) -> deque[CallOut]:
        is_fast = not alone and self.seconds.get(reward_index, BUNDLE_S) < BUNDLE_S
        return self._queues.setdefault(
            None if is_fast and not self._is_resident(reward_index) else reward_index, deque()
        )

    def _is_resident(self, reward_index: int | None) -> bool:
        return reward_index is not None and self._residents[reward_index]

    def next(self, running: Counter[int]) -> deque[CallOut] | None:
        """The queue to serve next, in turn; but a reward of which many calls are under way leaves the last workers to
        others that wait. running: how many workers are at each reward."""
        waiting = sorted(
            (key for key, queue in self._queues.items() if queue and not self._is_resident(key)),
            key=self._rank,
        )
        allowed = [
            key for key in waiting if key is None or len(waiting) == 1 or running[key] < self.most_workers
        ]
        if not allowed:
            return None
        key = next((key for key in allowed if self._rank(key) > self._last_served), allowed[0])
        self._last_served = self._rank(key)
        return self._queues[key]

    def _rank(self, key: int | None) -> int:
        return -1 if key is None else key

    def bundle(self, queue: deque[CallOut], most: int | None = None) -> list[CallOut]:
        """The next calls that belong together; those that nobody waits for any more are dropped."""
        bundle: list[CallOut] = []
        expected_s = 0.0
        while queue and (most is None or len(bundle) < most):
            call = queue[0]
            if call.is_wanted:
                per_call_s = self.seconds.get(call.job.reward_index, BUNDLE_S)
                is_single = self.rewards[call.job.reward_index].calling == "rollout"
                expected_s += per_call_s * (len(call.indices) if is_single else 1)
                if bundle and (call.alone or expected_s > BUNDLE_S):
                    break
                bundle.append(call)
            queue.popleft()
            if call.is_wanted and call.alone:
                break
        return bundle
