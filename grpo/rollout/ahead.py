"""The groups of each step: sampled when the step begins or, with `rollout.overlap`, while the step before is learned.

Ahead means exactly one step. Between two steps nothing is under way: the next step's groups are whole when the engine
gets new weights, so which weights sample which step does not depend on what is faster, and a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from grpo.feed.dynamic_sampling import Sampled
from grpo.groups import Group
from grpo.rollout import OnGroup

Sample = Callable[[int, OnGroup], Sampled]
"""A way of sampling a step's groups; it tells of the group of the step's first question as soon as it is complete."""


def of_version(group: Group, version: int) -> Group:
    """Return a group whose tokens say which weights sampled them."""
    rollouts = (replace(each, versions=(version,) * len(each.token_ids)) for each in group.rollouts)
    return replace(group, rollouts=tuple(rollouts))


class Ahead:
    """The groups that a step asks for, and in a thread those of the next one."""

    def __init__(self, sample: Sample, *, is_on: bool) -> None:
        self._sample = sample
        self._thread = ThreadPoolExecutor(1, "rollouts") if is_on else None
        self._next: tuple[int, Future[Sampled]] | None = None
        self._first: Future[Group] = Future()

    def take(self, step: int) -> Sampled:
        """Return a step's groups, which are sampled now if they were not ahead, as those of a run's first step."""
        if self._next is None:
            return self._sample(step, lambda _: None)
        of_step, sampled = self._next
        if of_step != step:
            raise RuntimeError(f"step {step}: the groups that were sampled ahead are of step {of_step}")
        self._next = None
        return sampled.result()

    def start(self, step: int) -> None:
        """Begin to sample a step's groups, by the weights that the engine has."""
        first = self._first = Future()
        self.begin(step, lambda: self._sample(step, first.set_result))

    def begin(self, step: int, sample: Callable[[], Sampled]) -> None:
        """Begin to sample a step's groups in another way, as a resumed run reads those that were sampled before."""
        assert self._thread is not None and self._next is None
        self._next = step, self._thread.submit(sample)

    def first_group(self) -> Group | None:
        """Wait for the group of the first question of the step that was started; None if it was lost."""
        assert self._next is not None
        either: list[Future[Any]] = [self._first, self._next[1]]
        wait(either, return_when=FIRST_COMPLETED)
        return self._first.result() if self._first.done() else None

    def wait(self) -> tuple[int, Sampled] | None:
        """Wait until nothing is sampled; return the next step and its groups, None if they were not begun."""
        if self._next is None:
            return None
        step, sampled = self._next
        return step, sampled.result()

    def close(self) -> None:
        """Wait until nothing is sampled; `Engine.cancel` makes it short."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
