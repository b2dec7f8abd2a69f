"""The trainer's ends of the reward processes: the one that forks, and its forks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from queue import SimpleQueue
from socket import socketpair
from typing import Any

from rewards.scoring.specs import Reward, WorkerSettings
from rewards.scoring.workers.jobs import CallOut
from rewards.scoring.workers.memory import children, is_above, kill_tree, tree

CODE = "from rewards.scoring.workers.worker import main; main()"
SURELY_TAKEN_BYTES = 64 * 1024
"""By the socket of a worker that has read all before."""
START_S = 120.0
"""For the imports of all rewards."""


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
        self.is_guilty = True
        """Of its own end, with what it was at."""
        self._outbox: SimpleQueue[bytes | None] | None = None

    @property
    def wanted(self) -> list[CallOut]:
        """Its calls without all their results."""
        return [call for call in self.calls.values() if call.is_wanted]

    @property
    def is_busy(self) -> bool:
        """Whether something is expected from it."""
        return bool(self.is_running or self.calls or self.cancelled_at)

    @property
    def at(self) -> CallOut | None:
        """The call under way: the first one without all its results."""
        return next((call for call in self.calls.values() if call.is_wanted), None)

    def send(self, message: tuple[Any, ...]) -> None:
        """Never waits: a worker may be stopped, or not be reading, and its socket takes only so much."""
        data = pickle.dumps(message, protocol=5)
        if self._outbox is None and (self.resident is not None or len(data) > SURELY_TAKEN_BYTES):
            self._outbox = SimpleQueue()
            threading.Thread(target=self._send_all, args=[self._outbox], daemon=True).start()
        if self._outbox is not None:
            self._outbox.put(data)
            return
        with suppress(OSError):  # its end is noticed elsewhere
            self.connection.send_bytes(data)

    def _send_all(self, outbox: SimpleQueue[bytes | None]) -> None:
        with suppress(OSError, TypeError):  # TypeError: another thread has closed it
            while (data := outbox.get()) is not None:
                self.connection.send_bytes(data)

    def close(self) -> None:
        if self._outbox is not None:
            self._outbox.put(None)
        self.connection.close()


class NurseryHandle:
    """The process that has loaded the rewards and forks workers. ValueError if they don't load there."""

    def __init__(self, rewards: Sequence[Reward], settings: WorkerSettings) -> None:
        self.rewards = rewards
        self._unborn: deque[WorkerHandle] = deque()
        (ours, theirs), (our_news, their_news) = socketpair(), socketpair()
        with theirs, their_news:
            numbers = [theirs.fileno(), their_news.fileno()]
            paths = [path or os.getcwd() for path in sys.path]
            self._process = subprocess.Popen(
                # Not -m: a module that runs as __main__ is another one than what pickles refer to.
                # -P: the working directory may hold a rewards.py.
                [sys.executable, "-P", "-c", CODE, *map(str, numbers)],
                pass_fds=numbers,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the trainer, which then ends them
            )
        self._control, self.news = Connection(ours.detach()), Connection(our_news.detach())
        specs = {reward.name: reward.spec for reward in rewards}
        self._control.send((sys.path, specs, int(settings.memory_gib * 2**30)))
        kind, content = self._first_word()
        if kind == "error":
            raise ValueError(f"rewards: in their own process: {content}")

    def _first_word(self) -> tuple[str, Any]:
        if not self.news.poll(START_S):
            return "error", f"not loaded within {START_S:g} s"
        try:
            return self.news.recv()
        except (EOFError, OSError):
            return "error", f"it ended with status {self._process.wait()}; its output is above"

    def fork(self, resident: int | None) -> WorkerHandle:
        """One more worker; resident: the index of the one reward that lives in it."""
        ours, theirs = socketpair()
        is_async = resident is not None and self.rewards[resident].is_async
        worker = WorkerHandle(Connection(ours.detach()), resident, is_async=is_async)
        self._unborn.append(worker)
        with theirs, suppress(OSError):  # a nursery that is gone is noticed elsewhere
            self._control.send(resident)
            send_handle(self._control, theirs.fileno(), self._process.pid)
        return worker

    def hear(self) -> tuple[int, int] | None:
        """Process id and exit status of a worker that has ended, if that is the news; EOFError or OSError if the
        nursery is gone."""
        kind, pid, *status = self.news.recv()
        if kind == "ended":
            return pid, status[0]
        worker = self._unborn.popleft()  # in the order of asking
        worker.pid = pid
        if kind == "unborn":
            worker.is_guilty, worker.lost_at = False, time.monotonic()
        return None

    def above(self, limit_bytes: float, workers: Sequence[WorkerHandle]) -> list[WorkerHandle]:
        """Workers that hold more memory with all that they have started. What ended ones have left behind is killed
        if that does."""
        trees = {worker: tree(worker.pid) for worker in workers if worker.pid}
        pids = {worker.pid for worker in workers}
        left = [each for pid in children(self._process.pid) if pid not in pids for each in tree(pid)]
        for pid in left if is_above(limit_bytes, left) else []:
            kill_tree(pid)
        return [worker for worker, of_worker in trees.items() if is_above(limit_bytes, of_worker)]

    def close(self) -> None:
        """End every worker, and itself."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.news.close()
