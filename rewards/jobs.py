"""What the pool of reward workers keeps of its work: jobs, the calls they come down to, and who is at them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from grpo.groups import Group
from rewards.calling import Result
from rewards.worker import dump_group


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
    deadline: float | None = None

    def __post_init__(self) -> None:
        size = len(self.payload.group.rollouts)
        self.results, self.missing = [None] * size, set(range(size))

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
    def missing(self) -> tuple[int, ...]:
        return tuple(index for index in self.indices if index in self.job.missing)


class WorkerHandle:
    """A worker as the trainer sees it."""

    def __init__(self, connection: Connection, resident: int | None, *, is_async: bool) -> None:
        self.connection, self.resident, self.is_async = connection, resident, is_async
        self.pid = 0  # until the nursery has told it
        self.calls: dict[int, CallOut] = {}
        self.is_running = False
        """Has not yet said that it is done with what it was sent; an async worker takes more at any time."""
        self.heard_at = time.monotonic()
        self.has_been_split = False
        self.cancelled_at: float | None = None
        self.cpu_s = 0.0
        self.lost_at: float | None = None
        self.why_lost = ""
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        if resident is not None:  # it may not be reading, and nobody else shall wait for it
            threading.Thread(target=self._send_all, daemon=True).start()

    def send(self, message: tuple[Any, ...]) -> None:
        if self.resident is not None:
            self._outbox.put(message)
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # its end is noticed elsewhere
            self.connection.send(message)

    def _send_all(self) -> None:
        with suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self.connection.send(message)

    def close(self) -> None:
        self._outbox.put(None)
        self.connection.close()
