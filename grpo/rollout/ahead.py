"""What a step begins with, made while the step before is learned: its prompts or, with `rollout.overlap`, its groups.

Ahead means exactly one step. Between two steps nothing is under way: the next step's groups are whole when the engine
gets new weights, so which weights sample which step does not depend on what is faster, and a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Generic, TypeVar

from grpo.groups import Group
from grpo.rollout import OnGroup
from grpo.run.stopping import POLL_S

Made = TypeVar("Made")


def of_version(group: Group, version: int) -> Group:
    """Return a group whose tokens say which weights sampled them."""
    rollouts = (replace(each, versions=(version,) * len(each.token_ids)) for each in group.rollouts)
    return replace(group, rollouts=tuple(rollouts))


class Ahead(Generic[Made]):
    """What a step asks for, groups or prompts, and in a thread that of the next one."""

    def __init__(self, make: Callable[[int, OnGroup], Made], *, is_on: bool) -> None:
        """Make a step's by `make`, which tells of the group of the step's first question as soon as it is complete."""
        self._make = make
        self._thread = ThreadPoolExecutor(1, "ahead") if is_on else None
        self._next: tuple[int, Future[Made]] | None = None
        self._first: Future[Group] = Future()

    def take(self, step: int) -> Made:
        """Return what is a step's, which is made now if it was not ahead, as that of a run's first step."""
        if self._next is None:
            return self._make(step, lambda _: None)
        of_step, made = self._next
        if of_step != step:
            raise RuntimeError(f"step {step}: what was made ahead is of step {of_step}")
        self._next = None
        return made.result()

    def start(self, step: int) -> None:
        """Begin to make a step's, groups by the weights that the engine has."""
        first = self._first = Future()
        self.begin(step, lambda: self._make(step, first.set_result))

    def begin(self, step: int, make: Callable[[], Made]) -> None:
        """Begin to make a step's in another way, as a resumed run reads groups that were sampled before."""
        assert self._thread is not None and self._next is None
        self._next = step, self._thread.submit(make)

    def first_group(self) -> Group | None:
        """Wait for the group of the first question of the step that was started; None if it was lost."""
        assert self._next is not None
        either: list[Future[Any]] = [self._first, self._next[1]]
        wait(either, return_when=FIRST_COMPLETED)
        return self._first.result() if self._first.done() else None

    def wait(self) -> tuple[int, Made] | None:
        """Wait until nothing is being made; return the next step and what is its, None if that was not begun."""
        if self._next is None:
            return None
        step, made = self._next
        return step, made.result()

    def settle(self, is_stopping: Callable[[], bool]) -> None:
        """Wait until nothing is being made, or until there is no time for it; an error is raised by `take` alone."""
        while self._next is not None and not self._next[1].done() and not is_stopping():
            wait([self._next[1]], timeout=POLL_S)

    def close(self) -> None:
        """Wait until nothing is being made; an engine that was cancelled and a loader that was closed make it short."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
