"""What the pool of reward workers keeps of its work: jobs, and the calls they come down to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grpo.groups import Group
from rewards.scoring.calling import Result
from rewards.scoring.workers.payloads import dump_group


class Payload:
    """A group as it is sent to workers, by several rewards."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._light: bytes | None = None

    def dump(self, *, with_frames: bool) -> bytes:
        if with_frames:
            return dump_group(self.group, with_frames=True)  # megabytes: not kept
        self._light = self._light or dump_group(self.group, with_frames=False)
        return self._light


@dataclass(eq=False)
class Job:
    """A reward's scoring of a group."""

    reward_index: int
    payload: Payload
    on_done: Callable[[], None]
    results: list[Result] = field(init=False)
    """By rollout; what is still missing is in `missing`, since None is a result."""
    missing: set[int] = field(init=False)
    since: float | None = None
    """When somebody began to wait for it."""
    in_step: bool = True
    """Its time limit is from then on; else from its reward's last value on."""
    is_late: bool = False
    """Its time was over before its results were there."""

    def __post_init__(self) -> None:
        size = len(self.payload.group.rollouts)
        self.results, self.missing = [None] * size, set(range(size))

    def waits_since(self, valued_at: float) -> float:
        """When its time began. valued_at: when its reward last gave a value."""
        if self.since is None:
            return math.inf
        return self.since if self.in_step else max(self.since, valued_at)

    def too_late(self, limit_s: float) -> str:
        since = f"{limit_s:g} s after the last rollout was sampled" if self.in_step else f"for {limit_s:g} s"
        return f"TimeoutError: no value {since} (timeout_s)"

    def fill(self, indices: Sequence[int], results: Sequence[Result]) -> None:
        """Take results; the first one for a rollout stays."""
        if not self.missing:
            return
        for index, result in zip(indices, results, strict=True):
            if index in self.missing:
                self.results[index] = result
        self.missing.difference_update(indices)
        if not self.missing:
            self.on_done()


@dataclass(eq=False)
class CallOut:
    """A call of a reward, to be made or under way: some rollouts of a job."""

    id: int
    job: Job
    indices: tuple[int, ...]
    alone: bool = False
    """Goes out by itself, since the worker that had it before was lost: if this one is too, it is guilty."""

    @property
    def is_wanted(self) -> bool:
        """Whether some of its results are still missing."""
        return not self.job.missing.isdisjoint(self.indices)

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(index for index in self.indices if index in self.job.missing)
