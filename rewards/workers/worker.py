"""Where rewards run: a process that has loaded them and forks workers.

A worker is a fork of a small process of its own, never of the trainer, whose GPU and threads would not survive
one; and a fork takes milliseconds, so that as many workers can be had as rewards are waiting. It is the leader of
a session: what a reward starts dies with it. All of them die with the trainer.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn

from grpo.groups import Group
from grpo.media.clip import Clip, LazyClip
from rewards.calling import Result, call, call_async
from rewards.loading import load_reward
from rewards.specs import Reward

FLUSH_S = 0.02
"""How long results may lie in a worker while it goes on."""
MAX_PRINTED_CHARS = 4_000
"""What is kept of what a reward prints, between two flushes."""

Call = tuple[int, int, int, tuple[int, ...]]
"""Id, index of the reward, index of the payload, and which of the group's rollouts."""


class FramesNeeded(BaseException):
    """A reward looked at frames, which it is not known to do: they were not sent. Not an Exception, so that no
    reward takes it for one of its own."""


def main() -> None:
    """Of the process that forks; its argument is the number of its end of a socket to the trainer."""
    control = Connection(int(sys.argv[1]))
    paths, specs, max_rss_bytes = control.recv()
    sys.path[:] = paths
    try:
        rewards = [load_reward(name, spec) for name, spec in specs.items()]
    except (ValueError, OSError) as error:
        control.send(("error", str(error)))
        return
    control.send(("ready", os.getpid()))
    Nursery(control, rewards, max_rss_bytes).serve()


class Nursery:
    """Forks workers on demand and tells how they ended; when the trainer is gone, so are they."""

    def __init__(self, control: Connection, rewards: Sequence[Reward], max_rss_bytes: int) -> None:
        self.control, self.rewards, self.max_rss_bytes = control, rewards, max_rss_bytes
        self.workers: set[int] = set()

    def serve(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            for ready in wait([self.control, woken]):
                if ready == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif not self._fork():
                    self._kill_all()
                    return

    def _fork(self) -> bool:
        """One more worker as the trainer asks; False once the trainer is gone."""
        try:
            resident = self.control.recv()
            handle = recv_handle(self.control)
        except (EOFError, OSError):
            return False
        pid = os.fork()
        if pid == 0:
            self.control.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(Connection(handle), self.rewards, resident, self.max_rss_bytes)
        os.close(handle)
        self.workers.add(pid)
        self.control.send(("forked", pid))
        return True

    def _reap(self) -> None:
        for pid in [*self.workers]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.workers.discard(pid)
                kill_group(pid)  # what it started may have outlived it
                self.control.send(("ended", pid, os.waitstatus_to_exitcode(status)))

    def _kill_all(self) -> None:
        for pid in self.workers:
            kill_group(pid)


def kill_group(pid: int) -> None:
    """Kill a worker with everything that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def work(
    connection: Connection, rewards: Sequence[Reward], resident: int | None, max_rss_bytes: int
) -> NoReturn:
    """The life of a worker. resident: the one reward that lives here, if it is one with a state."""
    status = 1
    try:
        os.setsid()
        _die_with_parent()
        printed = _catch_output()
        if resident is not None and rewards[resident].is_async:
            asyncio.run(AsyncWorker(connection, rewards[resident], printed).serve())
        else:
            Worker(connection, rewards, printed, max_rss_bytes).serve()
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
        self, connection: Connection, rewards: Sequence[Reward], printed: PrintedText, max_rss_bytes: int
    ) -> None:
        self.connection, self.rewards, self.printed = connection, rewards, printed
        self.max_rss_bytes = max_rss_bytes
        self.pid = os.getpid()
        self.results: list[tuple[int, int, list[Result], float]] = []
        self.flushed_at = time.monotonic()
        self.lock = threading.Lock()
        self.has_results = threading.Event()

    def serve(self) -> None:
        threading.Thread(target=self._flush_in_time, daemon=True).start()
        while True:
            kind, *content = self.connection.recv()
            if kind != "run":  # a "stop" that came after the end
                continue
            self._run(*content)
            if rss_bytes() > self.max_rss_bytes:
                self._send("retired")
                return
            self._send("done")

    def _run(self, calls: Sequence[Call], payloads: Sequence[bytes]) -> None:
        groups: dict[int, Group] = {}
        self.flushed_at = time.monotonic()
        for call_id, reward_index, payload_index, indices in calls:
            if payload_index not in groups:
                groups[payload_index] = load_group(payloads[payload_index])
            group, reward = groups[payload_index], self.rewards[reward_index]
            before = _fingerprint(group)
            try:
                if self._run_call(call_id, reward, group, indices):
                    break
            except FramesNeeded:
                self._send("frames", call_id)
            if _fingerprint(group) != before:
                del groups[payload_index]  # the next reward shall not see what this one changed
        self._flush()

    def _run_call(self, call_id: int, reward: Reward, group: Group, indices: Sequence[int]) -> bool:
        """Whether the trainer has asked to stop meanwhile."""
        pieces = [[i] for i in indices] if reward.calling == "rollout" else [[*indices]]
        for start, piece in enumerate(pieces):
            began = time.monotonic()
            results = call(reward, [group.rollouts[i] for i in piece])
            if os.getpid() != self.pid:
                os._exit(0)  # the reward has forked, and this is the fork
            now = time.monotonic()
            with self.lock:
                self.results.append((call_id, start, results, now - began))
            self.has_results.set()
            if now - self.flushed_at > FLUSH_S:
                self._flush()
                if self.connection.poll():
                    self.connection.recv()  # "stop": nothing else is sent to a worker at work
                    return True
        return False

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
            done = (call_id, 0, results, time.monotonic() - began)
            self.connection.send(("results", [done], self.printed.take()))
        except FramesNeeded:
            self.connection.send(("frames", call_id))
        finally:
            self.tasks.pop(call_id, None)


class PrintedText(io.TextIOBase):
    """What a reward prints, up to a limit: megabytes of it cost nothing."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = MAX_PRINTED_CHARS

    def writable(self) -> bool:
        return True

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


def _die_with_parent() -> None:
    """Linux only; elsewhere a worker that hangs when its parent is killed outlives it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def rss_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds; 0 where that can't be read."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def dump_group(group: Group, *, with_frames: bool) -> bytes:
    """A group for a worker. Without frames it is a hundredth of the size, and most rewards read none."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    if not with_frames:
        pickler.dispatch_table = {Clip: _reduce_clip}
    pickler.dump(group)
    return buffer.getvalue()


def _fingerprint(group: Group) -> bytes:
    """Of what a reward could change of its arguments; the rest is frozen."""
    try:
        return pickle.dumps(group.prompt.sample.columns)
    except Exception:  # it has put something in that can't even be pickled
        return b""


def load_group(payload: bytes) -> Group:
    return pickle.loads(payload)


def _reduce_clip(clip: Clip) -> tuple[Any, tuple[Any, ...]]:
    facts = {
        "path": clip.path,
        "times_s": clip.times_s,
        "sample_fps": clip.sample_fps,
        "duration_s": clip.duration_s,
        "height_px": clip.height_px,
        "width_px": clip.width_px,
    }
    return _clip_without_frames, (facts,)


def _clip_without_frames(facts: Mapping[str, Any]) -> LazyClip:
    return LazyClip(**facts, load_frames=_ask_for_frames)


def _ask_for_frames() -> NoReturn:
    raise FramesNeeded
