"""Calls that run in supervised worker processes, for the trainer: `Pool.submit` gives a future.

A pool starts a supervisor process (`supervisor.py`), which forks the workers (`worker.py`). A thread of the trainer
reads the supervisor's messages. A supervisor that dies or falls silent is replaced, and its calls are made again.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Any

from grpo.workers.processes import children, kill_tree
from grpo.workers.supervisor import HEARTBEAT_S, Limits, News
from grpo.workers.worker import Call, Function

CODE = "from grpo.workers.supervisor import main; main()"
START_S = 120.0
"""The seconds that the imports of all functions may take, from a slow disk."""
SILENCE_S = 12 * HEARTBEAT_S
MAX_RESTARTS = 3
"""The number of times that the supervisor may be lost in a row, without a call's value in between."""
MAX_PRINTED_CHARS = 20_000
"""The most that is shown in a run of what calls print."""

logger = logging.getLogger(__name__)


class CallFailed(Exception):
    """The error of a call without a value, and its reason: a traceback, how its worker ended, or the time it took."""

    def __init__(self, kind: str, why: str) -> None:
        """Keep the kind: "raised", "late", "died" (the call's worker ended, twice) or "memory" (it held too much)."""
        super().__init__(why)
        self.kind = kind


class PoolLost(RuntimeError):
    """The error of a pool that is closed, or whose processes can't be started."""


class CallFuture(Future[Any]):
    """The future of a call's value, which raises CallFailed or PoolLost."""

    def __init__(self, call: Call, label: str) -> None:
        super().__init__()
        self.call, self.label = call, label


class Pool:
    """A pool of workers for some functions. Any thread may submit. Unless closed, it lives as long as this process."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Sequence[Function]],
        *,
        base_workers: int,
        max_workers: int,
        memory_gib: float = float("inf"),
    ) -> None:
        """Start the supervisor. name: of the processes, in messages. load: makes the functions, in the supervisor."""
        self.num_deaths = 0
        """The number of workers that ended neither by a time limit nor at this pool's wish."""
        self._name, self._load, self.memory_gib = name, load, memory_gib
        self._limits = Limits(base_workers, max_workers, memory_gib * 2**30)
        self._print_room = MAX_PRINTED_CHARS
        self._lock = threading.Lock()
        self._ids = count()
        self._underway: dict[int, CallFuture] = {}
        self._error: BaseException | None = None
        self._is_closing = self._is_ready = False
        self._num_restarts = 0
        self._was_ready: Future[list[Any]] = Future()
        self._process, self._connection = _start_supervisor(self._load, self._limits)
        self._thread = threading.Thread(target=self._live, name="workers", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The workers' process ids at the moment."""
        return children(self.pid)

    def wait_until_ready(self) -> list[Any]:
        """Wait until the functions are loaded, and return what each says `about` itself; PoolLost if they can't be."""
        return self._was_ready.result()

    def submit(
        self, function: int, args: Any, *, limit_s: float | None = None, label: str = ""
    ) -> CallFuture:
        """Have a function called in a worker. function: its place among those that were loaded.

        limit_s: what the call may take from its start. label: what messages call it.
        """
        future = CallFuture(Call(next(self._ids), function, pickle.dumps(args), limit_s), label)
        with self._lock:
            if (error := self._error) is None:
                self._underway[future.call.id] = future
                self._send(future.call)
        if error is not None:
            future.set_exception(error)
        return future

    def cancel(self, futures: Iterable[CallFuture]) -> None:
        """Drop the calls that have no value yet, and end those under way."""
        futures = [*futures]
        with self._lock:
            dropped = {each.call.id for each in futures if self._underway.pop(each.call.id, None)}
            if dropped:
                self._send(dropped)
        for future in futures:
            future.cancel()

    def close(self) -> None:
        """End the processes, also those with calls under way."""
        if self._is_closing:
            return
        self._is_closing = True
        with self._lock:
            self._send(None)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._end_supervisor()
        self._thread.join(timeout=5)

    def _send(self, message: Any) -> None:
        with suppress(OSError):
            # A supervisor that is gone is noticed by the thread.
            self._connection.send(message)

    def _live(self) -> None:
        try:
            while self._error is None:
                try:
                    if not self._connection.poll(SILENCE_S if self._is_ready else START_S):
                        raise EOFError
                    news: list[News] = self._connection.recv()
                except (EOFError, OSError):
                    self._replace_supervisor()
                    continue
                for each in news:
                    self._take(each)
        except BaseException as error:
            # A fault in this module reaches those who wait for calls.
            self._give_up(error)

    def _take(self, news: News) -> None:
        if news.kind == "ready":
            self._is_ready = True
            if not self._was_ready.done():
                self._was_ready.set_result(news.content)
        elif news.kind == "refused":
            self._give_up(PoolLost(news.content))
        elif news.kind == "printed":
            self._print(news.content)
        elif news.kind == "retry":
            self.num_deaths += 1
            if future := self._underway.get(news.call_id):
                logger.warning("%s: its process %s; trying again", future.label, news.content)
        else:
            self._settle(news)

    def _settle(self, news: News) -> None:
        self.num_deaths += news.kind in ("died", "memory")
        with self._lock:
            future = self._underway.pop(news.call_id, None)
        if future is None:
            # The call was cancelled meanwhile.
            return
        if news.kind == "value":
            self._num_restarts = 0
            future.set_result(pickle.loads(news.content))
        else:
            future.set_exception(CallFailed(news.kind, news.content))

    def _print(self, text: str) -> None:
        if self._print_room > 0:
            shown, self._print_room = text[: self._print_room], self._print_room - len(text)
            end = "" if self._print_room > 0 else "\n(what is printed from here on is dropped)\n"
            print(shown, file=sys.stderr, end=end, flush=True)

    def _replace_supervisor(self) -> None:
        """Start another supervisor, and send it the calls that have no value yet."""
        self._end_supervisor()
        self._num_restarts += 1
        if self._is_closing:
            self._give_up(PoolLost(f"the pool of {self._name} is closed"))
        elif not self._is_ready or self._num_restarts > MAX_RESTARTS:
            status = self._process.returncode
            self._give_up(
                PoolLost(f"{self._name} can't be started; see their output above (status {status})")
            )
        else:
            with self._lock:
                self._connection.close()
                self._is_ready = False
                self._process, self._connection = _start_supervisor(self._load, self._limits)
                for future in self._underway.values():
                    self._send(future.call)

    def _end_supervisor(self) -> None:
        """Kill the supervisor with all below it."""
        kill_tree(self.pid)
        # A process that waits for a disk can't be killed, and is left.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            self._error, futures = error, [*self._underway.values()]
            self._underway.clear()
            self._connection.close()
        for future in futures:
            future.set_exception(error)
        if not self._was_ready.done():
            self._was_ready.set_exception(error)


def _start_supervisor(load: Callable[[], Sequence[Function]], limits: Limits) -> tuple[Any, Connection]:
    ours, theirs = socketpair()
    with theirs:
        paths = [path or os.getcwd() for path in sys.path]
        process = subprocess.Popen(
            # Not -m: a module that runs as __main__ is not the module that pickles refer to.
            # -P: the working directory may hold modules of any name.
            [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for the trainer, which then ends the supervisor.
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    # A supervisor that has ended already is noticed by the thread.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(paths)
        connection.send((load, limits))
    return process, connection
