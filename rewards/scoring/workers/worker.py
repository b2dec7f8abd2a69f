"""Where rewards run: a process that has loaded them and forks workers.

A worker is a fork of a small process of its own, never of the trainer, whose GPU and threads would not survive
one; and a fork takes milliseconds, so that as many workers can be had as rewards are waiting. It is the leader of
a session: what a reward starts ends with it, or, if it has left the session, with the run (on Linux).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn

import psutil

from grpo.groups import Group
from rewards.scoring.calling import Result, call, call_async, traceback_text
from rewards.scoring.loading import load_reward
from rewards.scoring.specs import Reward
from rewards.scoring.workers.memory import kill_group, kill_tree, rss_bytes
from rewards.scoring.workers.payloads import FramesNeeded, FreshGroup, load_group

FLUSH_S = 0.02
"""How long results may lie in a worker while it goes on."""
MAX_CALLS = 20_000
"""Of a worker, before a fresh fork takes its place: with it go small leaks, and the zombies of what rewards forked."""
MAX_PRINTED_CHARS = 4_000
"""What is kept of what a reward prints, between two flushes."""

Call = tuple[int, int, int, tuple[int, ...]]
"""Id, index of the reward, index of the payload, and which of the group's rollouts."""


def main() -> None:
    """Of the process that forks; its arguments are the numbers of its ends of two sockets to the trainer: one for
    what it is asked, one for what it tells."""
    control, news = (Connection(int(number)) for number in sys.argv[1:3])
    paths, specs, max_rss_bytes = control.recv()
    sys.path[:] = paths
    try:
        rewards = [load_reward(name, spec) for name, spec in specs.items()]
    except (ValueError, OSError) as error:
        news.send(("error", str(error)))
        return
    news.send(("ready", os.getpid()))
    Nursery(control, news, rewards, max_rss_bytes).serve()


class Nursery:
    """Forks workers on demand and tells how they ended; when the trainer is gone, so are they."""

    def __init__(
        self, control: Connection, news: Connection, rewards: Sequence[Reward], max_rss_bytes: int
    ) -> None:
        self.control, self.news = control, news
        self.rewards, self.max_rss_bytes = rewards, max_rss_bytes
        self.workers: set[int] = set()

    def serve(self) -> None:
        gc.freeze()  # no worker looks for garbage among what it shares with this process
        _control_process(PR_SET_CHILD_SUBREAPER, 1)  # what rewards start and leave behind becomes ours
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while True:
                for ready in wait([self.control, woken]):
                    if ready == woken:
                        os.read(woken, 4096)
                        self._reap()
                    else:
                        self._fork(self.control.recv(), recv_handle(self.control))
        except (EOFError, OSError):  # the trainer is gone, or has closed
            self._kill_all()

    def _fork(self, resident: int | None, handle: int) -> None:
        """One more worker; the trainer is told if there can't be one."""
        try:
            pid = os.fork()
        except OSError:
            os.close(handle)
            self.news.send(("unborn", 0))
            return
        if pid == 0:
            self.control.close()
            self.news.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(Connection(handle), self.rewards, resident, self.max_rss_bytes)
        os.close(handle)
        self.workers.add(pid)
        self.news.send(("forked", pid))

    def _reap(self) -> None:
        for pid in [*self.workers]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.workers.discard(pid)
                kill_group(pid)  # what it started may have outlived it
                self.news.send(("ended", pid, os.waitstatus_to_exitcode(status)))

    def _kill_all(self) -> None:
        for pid in self.workers:
            kill_tree(pid)
        for child in psutil.Process().children(recursive=True):  # those that left their group
            with suppress(psutil.Error):
                child.kill()


def work(
    connection: Connection, rewards: Sequence[Reward], resident: int | None, max_rss_bytes: int
) -> NoReturn:
    """The life of a worker. resident: the one reward that lives here, if it is one with a state."""
    status = 1
    try:
        os.setsid()
        _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
        printed = _catch_output()
        if resident is not None and rewards[resident].is_async:
            asyncio.run(AsyncWorker(connection, rewards[resident], printed).serve())
        else:
            Worker(connection, rewards, printed, max_rss_bytes, is_resident=resident is not None).serve()
        status = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 0  # the trainer is gone, or has done with this worker
    except Exception:
        connection.send(("bug", traceback.format_exc()))
    finally:
        os._exit(status)


class Worker:
    """Runs calls one after another and sends results in bundles."""

    def __init__(
        self,
        connection: Connection,
        rewards: Sequence[Reward],
        printed: PrintedText,
        max_rss_bytes: int,
        *,
        is_resident: bool,
    ) -> None:
        self.connection, self.rewards, self.printed = connection, rewards, printed
        self.is_resident = is_resident
        self.max_rss_bytes = max_rss_bytes
        self.pid = os.getpid()
        self.results: list[tuple[int, int, list[Result], float]] = []
        self.flushed_at = time.monotonic()
        self.num_calls = 0
        self.lock = threading.Lock()
        self.has_results = threading.Event()

    def serve(self) -> None:
        threading.Thread(target=self._flush_in_time, daemon=True).start()
        while True:
            kind, *content = self.connection.recv()
            if kind != "run":  # a "stop" that came after the end
                continue
            self._run(*content)
            if rss_bytes(self.pid) > self.max_rss_bytes or (
                self.num_calls > MAX_CALLS and not self.is_resident
            ):
                self._send("retired")
                return
            self._send("done")

    def _run(self, calls: Sequence[Call], payloads: Sequence[bytes]) -> None:
        groups = [FreshGroup(payload) for payload in payloads]
        self.flushed_at = time.monotonic()
        for call_id, reward_index, payload_index, indices in calls:
            self.num_calls += 1
            try:
                if self._run_call(call_id, self.rewards[reward_index], groups[payload_index], indices):
                    break
            except FramesNeeded:
                self._send("frames", call_id)
        self._flush()

    def _run_call(self, call_id: int, reward: Reward, fresh: FreshGroup, indices: Sequence[int]) -> bool:
        """Whether the trainer has asked to stop meanwhile."""
        pieces = [[i] for i in indices] if reward.calling == "rollout" else [[*indices]]
        for start, piece in enumerate(pieces):
            rollouts, began = fresh.take().rollouts, time.monotonic()
            results = call(reward, [rollouts[i] for i in piece])
            if os.getpid() != self.pid:
                os._exit(0)  # the reward has forked, and this is the fork
            now = time.monotonic()
            self._keep(call_id, start, results, now - began)
            fresh.forget_changes()
            if now - self.flushed_at > FLUSH_S:
                self._flush()
                if self.connection.poll():
                    self.connection.recv()  # "stop": nothing else is sent to a worker at work
                    return True
        return False

    def _keep(self, call_id: int, start: int, results: list[Result], seconds: float) -> None:
        """Until the next flush, together with what the same call gave before."""
        with self.lock:
            if self.results and self.results[-1][0] == call_id:
                _, first, before, before_s = self.results[-1]
                self.results[-1] = (call_id, first, before + results, before_s + seconds)
            else:
                self.results.append((call_id, start, results, seconds))
        if not self.has_results.is_set():
            self.has_results.set()

    def _send(self, *message: Any) -> None:
        with self.lock:
            self.connection.send(message)

    def _flush(self) -> None:
        with self.lock:
            if self.results:
                self.connection.send(("results", self.results, self.printed.take()))
            self.results = []
            self.flushed_at = time.monotonic()
            self.has_results.clear()

    def _flush_in_time(self) -> None:
        """What was finished before a call that hangs must not be lost with it."""
        while self.has_results.wait():
            time.sleep(FLUSH_S)
            if time.monotonic() - self.flushed_at > FLUSH_S:
                self._flush()


class AsyncWorker:
    """Runs all calls of one async reward at once, in one event loop."""

    def __init__(self, connection: Connection, reward: Reward, printed: PrintedText) -> None:
        self.connection, self.reward, self.printed = connection, reward, printed
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.cancelled: set[int] = set()
        self.pid = os.getpid()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        gone = loop.create_future()

        def receive() -> None:
            try:
                while self.connection.poll():
                    self._take(loop, *self.connection.recv())
            except (EOFError, OSError):
                if not gone.done():
                    gone.set_result(None)

        loop.add_reader(self.connection.fileno(), receive)
        await gone

    def _take(self, loop: asyncio.AbstractEventLoop, kind: str, *content: Any) -> None:
        if kind == "cancel":
            for call_id in content[0]:
                if task := self.tasks.get(call_id):
                    self.cancelled.add(call_id)
                    task.cancel()
            self.connection.send(("cancelled",))  # in answer: this loop is alive
        elif kind == "run":
            calls, payloads = content
            for call_id, _, payload_index, indices in calls:
                work = self._run(call_id, load_group(payloads[payload_index]), indices)
                self.tasks[call_id] = loop.create_task(work)

    async def _run(self, call_id: int, group: Group, indices: Sequence[int]) -> None:
        began = time.monotonic()
        try:
            results = await call_async(self.reward, [group.rollouts[i] for i in indices])
            message = self._results(call_id, results, began)
        except FramesNeeded:
            message = ("frames", call_id)
        except asyncio.CancelledError:  # ours, or one that a library let out
            message = self._results(call_id, [traceback_text()] * len(indices), began)
        if os.getpid() != self.pid:
            os._exit(0)  # the reward has forked, and this is the fork
        if call_id not in self.cancelled:
            self.connection.send(message)
        self.cancelled.discard(call_id)
        self.tasks.pop(call_id, None)

    def _results(self, call_id: int, results: list[Result], began: float) -> tuple[Any, ...]:
        return ("results", [(call_id, 0, results, time.monotonic() - began)], self.printed.take())


class PrintedText(io.TextIOBase):
    """What a reward prints, up to a limit: megabytes of it cost nothing."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = MAX_PRINTED_CHARS

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1  # nowhere: for those who hand it on to a process

    def write(self, text: str, /) -> int:
        if self._room > 0:
            self._parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)

    def take(self) -> str:
        """What was printed since the last time."""
        text = "".join(self._parts)
        self._parts, self._room = [], MAX_PRINTED_CHARS
        return text


def _catch_output() -> PrintedText:
    """Python's output is kept, up to a limit; what goes past Python is dropped."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    printed = PrintedText()
    sys.stdout = sys.stderr = printed
    return printed


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def _control_process(option: int, value: int) -> None:
    """prctl, on Linux only: elsewhere a worker that hangs when its parent is killed outlives it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
