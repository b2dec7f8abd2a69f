"""The trainer's side of the processes that decode: hands out clips, takes in frames, and survives what happens there.

A thread of its own does it. A worker that crashes is replaced, and its clip is tried once more: it may have been
killed for another's fault. One that takes longer than the time limit (a clip too long, a file system that hangs) is
killed and its clip refused. A process that can't even be killed, because it waits for a disk, is left behind.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from socket import socketpair
from typing import Any

import numpy as np

from grpo.media.clip import Clip, ClipFacts, ClipSource, MediaError, TookTooLong
from grpo.media.decode_process import transfer
from grpo.media.reading import ClipReader, Read, describe

CODE = "from grpo.media.decode_process import main; main()"
START_S = 120.0
"""For its imports, from a slow disk."""
ANSWER_S = 30.0
"""For a fork, on a machine that is very busy."""
POLL_S = 0.2
MAX_ATTEMPTS = 2

logger = logging.getLogger(__name__)


class NurseryLost(Exception):
    """The process that forks has died or does not answer."""


@dataclass(eq=False)
class _Task:
    source: ClipSource
    future: Future[Read] = field(default_factory=Future)
    attempts: int = 0


@dataclass(eq=False)
class _Worker:
    pid: int
    connection: Connection
    memory: int
    """Number of the file in memory that it hands frames over in."""
    task: _Task | None = None
    """Whose clip it has not handed over yet."""
    since: float | None = None
    """When it was given something to do; None while it has nothing."""

    def close(self) -> None:
        self.connection.close()
        os.close(self.memory)


class DecodePool:
    """Up to num_workers processes that read clips. Any thread may submit."""

    def __init__(self, reader: ClipReader, *, num_workers: int, timeout_s: float) -> None:
        self._reader, self._num_workers, self._timeout_s = reader, num_workers, timeout_s
        self._lock = threading.Lock()
        self._inbox: deque[_Task] = deque()
        self._is_closing = False
        self._error: BaseException | None = None
        self._queue: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._may_store = True
        self._said: set[str] = set()
        self._nursery: _Nursery | None = None
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._live, name="clips", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Of the workers at the moment."""
        return [worker.pid for worker in self._workers]

    def submit(self, source: ClipSource) -> Future[Read]:
        """Have a clip read; the future raises MediaError if it can't be."""
        task = _Task(source)
        with self._lock:
            if self._error is not None:
                task.future.set_exception(self._error)
            else:
                self._inbox.append(task)
                self._wake_up()
        return task.future

    def close(self) -> None:
        """End the processes, whatever they are at; clips that nobody waits for any more are not read."""
        if not self._is_closing:
            self._is_closing = True
            self._wake_up()
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # enough has been written to wake it
            os.write(self._wake, b"x")

    def _live(self) -> None:
        error: BaseException = RuntimeError("the clip loader is closed")
        try:
            with suppress(NurseryLost):  # to be tried again when there is a clip to read
                self._nursery = self._new_nursery()
            while not self._is_closing:
                self._take_in(
                    wait([self._woken, *(each.connection for each in self._workers)], self._rest_s())
                )
                self._kill_late()
                self._hand_out()
        except BaseException as raised:  # also a bug of ours: who waits gets it
            error = raised
        self._end(error)

    def _rest_s(self) -> float | None:
        """Until a worker will be late."""
        began = [worker.since for worker in self._workers if worker.since is not None]
        return max(0.0, min(began) + self._timeout_s - time.monotonic()) if began else None

    def _take_in(self, ready: list[Any]) -> None:
        if self._woken in ready:
            os.read(self._woken, 4096)
        while self._inbox:
            self._queue.append(self._inbox.popleft())
        for worker in [each for each in self._workers if each.connection in ready]:
            try:
                kind, *content = worker.connection.recv()
            except (EOFError, OSError):
                self._lose(worker)
                continue
            self._hear(worker, kind, *content)

    def _hear(self, worker: _Worker, kind: str, *content: Any) -> None:
        if kind == "done":
            worker.since = None
            self._note(*content)
            return
        task, worker.task = worker.task, None
        worker.since = time.monotonic()  # what is left to do is to store it
        assert task is not None
        if kind == "read":
            self._accept(task, worker.memory, *content)
        else:
            task.future.set_exception(MediaError(*content))

    def _accept(self, task: _Task, memory: int, *content: Any) -> None:
        try:
            read = _take_over(memory, *content)
        except Exception as error:  # no memory for it, say; nobody else knows of the task any more
            reason = f"its frames could not be taken over: {describe(error)}"
            task.future.set_exception(MediaError(f"{task.source.path}: {reason}"))
        else:
            task.future.set_result(read)

    def _note(self, is_writing: bool, said: list[tuple[str, int, str]]) -> None:
        self._may_store &= is_writing
        for name, level, text in said:
            if text not in self._said:
                logging.getLogger(name).log(level, text)
                self._said.add(text)

    def _lose(self, worker: _Worker) -> None:
        """A worker has died."""
        why = self._how_it_ended(worker.pid)
        self._workers.remove(worker)
        worker.close()
        if (task := worker.task) is None:
            return
        task.attempts += 1
        if task.attempts < MAX_ATTEMPTS:
            logger.warning("%s: the process that decoded it %s; trying again", task.source.path, why)
            self._queue.appendleft(task)
            return
        task.future.set_exception(
            MediaError(f"{task.source.path}: the process that decoded it {why}, {MAX_ATTEMPTS} times")
        )

    def _how_it_ended(self, pid: int) -> str:
        try:
            status = self._nursery.status(pid) if self._nursery else None
        except NurseryLost:
            self._drop_nursery()
            status = None
        if status is None:
            return "was lost"
        if status < 0:
            return f"was killed by signal {-status} ({signal.Signals(-status).name})"
        return f"exited with status {status}"

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in [*self._workers]:
            if worker.since is None or now - worker.since < self._timeout_s or worker.connection.poll():
                continue
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            self._workers.remove(worker)
            worker.close()
            if worker.task is not None:
                reason = f"not read within media.timeout_s={self._timeout_s:g}"
                worker.task.future.set_exception(TookTooLong(f"{worker.task.source.path}: {reason}"))
            elif self._may_store:
                self._may_store = False
                logger.warning(
                    "media.cache_dir: storing a clip takes too long; going on without storing clips"
                )

    def _hand_out(self) -> None:
        while self._queue and (worker := self._free_worker()) is not None:
            task = self._queue.popleft()
            try:
                worker.connection.send((task.source, self._may_store))
            except OSError:  # it has died while it had nothing to do
                self._queue.appendleft(task)
                self._lose(worker)
                continue
            worker.task, worker.since = task, time.monotonic()

    def _free_worker(self) -> _Worker | None:
        for worker in self._workers:
            if worker.since is None:
                return worker
        return self._fork() if len(self._workers) < self._num_workers else None

    def _fork(self) -> _Worker:
        with suppress(NurseryLost):
            return self._try_fork()
        try:
            return self._try_fork()
        except NurseryLost as error:
            raise RuntimeError(
                "media: the processes that decode clips can't be started; see their output above"
            ) from error

    def _try_fork(self) -> _Worker:
        if self._nursery is None:
            self._nursery = self._new_nursery()
        try:
            self._workers.append(self._nursery.fork())
        except NurseryLost:
            self._drop_nursery()
            raise
        return self._workers[-1]

    def _new_nursery(self) -> _Nursery:
        return _Nursery(self._reader, lambda: self._is_closing)

    def _drop_nursery(self) -> None:
        """Its workers end with it. Kept, it might answer late, and that be taken for another question's answer."""
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def _end(self, error: BaseException) -> None:
        self._drop_nursery()
        with self._lock:
            self._error = error
            tasks = [*self._inbox, *self._queue, *(each.task for each in self._workers if each.task)]
        for task in tasks:
            task.future.set_exception(error)
        for worker in self._workers:
            worker.close()


class DecodeHere:
    """In place of a pool: reads in the caller's own process and thread, at once and without a time limit."""

    def __init__(self, reader: ClipReader) -> None:
        self._reader = reader

    def submit(self, source: ClipSource) -> Future[Read]:
        future: Future[Read] = Future()
        try:
            read = self._reader.read(source)
            self._reader.keep(read)
            future.set_result(read)
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is left to end."""


class _Nursery:
    """The trainer's end of the process that forks. Every call raises NurseryLost if that is gone."""

    def __init__(self, reader: ClipReader, is_unwanted: Callable[[], bool]) -> None:
        """is_unwanted: asked while it does not answer."""
        self._is_unwanted = is_unwanted
        ours, theirs = socketpair()
        with theirs:
            paths = [path or os.getcwd() for path in sys.path]
            self._process = subprocess.Popen(
                # -P: the working directory may hold modules of any name.
                [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the trainer, which then ends them
            )
        self._control = Connection(ours.detach())
        try:
            self._ask(reader, within_s=START_S)
        except NurseryLost:
            self.close()
            raise

    def fork(self) -> _Worker:
        ours, theirs = socketpair()
        memory = os.memfd_create("clip")
        try:
            with theirs:
                pid = self._ask(("fork",), theirs.fileno(), memory, within_s=ANSWER_S)
            if not (isinstance(pid, int) and pid > 1):  # a kill of -1 or 0 would end far more
                raise NurseryLost(f"it calls {pid} a process")
        except NurseryLost:
            ours.close()
            os.close(memory)
            raise
        return _Worker(pid, Connection(ours.detach()), memory)

    def status(self, pid: int) -> int | None:
        """How a worker has ended; None if it has not."""
        return self._ask(("status", pid), within_s=ANSWER_S)

    def close(self) -> None:
        """The kernel ends its workers with it."""
        self._control.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it waits for a disk: left behind
            self._process.wait(timeout=5.0)

    def _ask(self, message: Any, *handles: int, within_s: float) -> Any:
        try:
            self._control.send(message)
            for handle in handles:
                send_handle(self._control, handle, self._process.pid)
            give_up_at = time.monotonic() + within_s
            while not self._control.poll(POLL_S):
                if self._is_unwanted() or time.monotonic() > give_up_at:
                    raise NurseryLost(f"no answer within {within_s:g} s")
            return self._control.recv()
        except (EOFError, OSError) as error:
            raise NurseryLost(f"it has ended: {self._process.poll()}") from error


def _take_over(memory: int, facts: ClipFacts, is_decoded: bool, name: str | None) -> Read:
    """The clip that a worker has handed over, with frames of this process's own."""
    frames_FHWC = np.empty((facts.num_frames, facts.height_px, facts.width_px, 3), np.uint8)
    transfer(lambda file, data, at: os.preadv(file, [data], at), memory, frames_FHWC)
    os.ftruncate(memory, 0)
    return Read(Clip(facts, frames_FHWC), is_decoded=is_decoded, name=name)
