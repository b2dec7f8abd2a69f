"""The supervisor process, which forks workers and enforces time and memory limits. Read `Supervisor.run` first.

It is a small process of its own, never the trainer, whose GPU and threads would not survive a fork. It loads the
functions once, and a fork takes milliseconds where a new process would import their libraries for seconds: one that
crashed or hangs is soon replaced, and as many workers can be had as calls are waiting. A call whose worker dies is made
once more, by another worker, since it may have been killed for another's fault. What a call starts ends with its
worker, however many processes that are and whatever session they have gone to.

Not `multiprocessing`'s fork server: its workers import the trainer's `__main__` again. Not pebble or
concurrent.futures: their workers share a pipe and its lock, so that one that is stopped, or killed from outside, takes
all others along.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal, NamedTuple

from grpo.workers.processes import (
    adopt_orphans,
    are_sleeping,
    children,
    has_free_memory,
    is_above,
    kill_group,
    kill_tree,
    tree,
)
from grpo.workers.worker import Call, Function, Said, work

TICK_S = 0.04
"""The seconds between two checks of the workers while calls are under way."""
IDLE_TICK_S = 1.0
"""The seconds between two checks of the workers while no call is: what calls have started may still grow."""
MEMORY_TICK_S = 0.25
HEARTBEAT_S = 5.0
"""The seconds after which the trainer is sent an empty message, if there is no news."""
GRACE_S = 1.0
"""The seconds within which an event loop has to answer that it has cancelled calls."""
STUCK_S = 0.5
"""The seconds for which no worker became free, after which a function whose calls all wait gets a worker of its own."""
MAX_ASYNC_CALLS = 64
"""The most calls of a coroutine function that run at a time; the function may set itself a lower limit."""


class Limits(NamedTuple):
    """The limits on the number and the size of workers."""

    base_workers: int
    """The number of workers at the start; there are more only while these wait for something, or hang."""
    max_workers: int
    """The most workers, beside one for each function that would have none, since others hang in all of them."""
    memory_bytes: float
    """The memory that a worker and what its calls have started may hold; above it, all of these are killed."""


class News(NamedTuple):
    """A message to the trainer, about a call unless call_id is -1."""

    kind: Literal["ready", "refused", "value", "raised", "retry", "died", "memory", "late", "printed"]
    call_id: int = -1
    content: Any = None


@dataclass(eq=False)
class Worker:
    """A worker as its supervisor sees it."""

    pid: int
    connection: Connection
    home: int | None
    """The one function that lives in the worker; None: the worker takes calls of all that have no state."""
    calls: dict[int, tuple[Call, float]] = field(default_factory=dict)
    """The calls under way, by their ids, and when they were sent."""
    changed_at: float = field(default_factory=time.monotonic)
    """When the worker was last given a call, or gave a value."""
    asked_at: float | None = None
    """When the worker was told to cancel calls; None once it has answered."""

    @property
    def is_free(self) -> bool:
        return not self.calls and not self.connection.closed


def main() -> None:
    """Run the supervisor in its own process, whose argument is the descriptor of its socket to the trainer."""
    trainer = Connection(int(sys.argv[1]))
    sys.path[:] = trainer.recv()
    load, limits = trainer.recv()
    adopt_orphans()
    pid = os.getpid()
    try:
        functions = load()
    except (ValueError, OSError) as error:
        trainer.send([News("refused", content=str(error))])
        return
    if os.getpid() != pid:
        # What was imported has forked, and this is the fork.
        os._exit(0)
    trainer.send([News("ready", content=[function.about for function in functions])])
    Supervisor(trainer, functions, limits).run()


class Supervisor:
    def __init__(self, trainer: Connection, functions: Sequence[Function], limits: Limits) -> None:
        self.trainer, self.functions, self.limits = trainer, functions, limits
        self.workers: dict[int, Worker] = {}
        self.unreaped: set[int] = set()
        self.older = {*children(os.getpid())}
        """The ids of processes that were started when the functions were loaded."""
        self.queues: list[deque[Call]] = [deque() for _ in functions]
        self.retried: set[int] = set()
        """The ids of the calls that a worker has died with."""
        self.news: list[News] = []
        self.num_wanted = limits.base_workers
        """The number of workers without a home that there may be at the moment."""
        self.were_sleeping = False
        self.told_at = self.looked_at = self.weighed_at = 0.0
        self.trainer_pid = os.getppid()
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        # No worker looks for garbage in the memory that it shares with this process.
        gc.freeze()
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A scheduler may send it to all processes of a run, which first ends its step and needs its rewards and clips.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.selector.register(self.trainer, selectors.EVENT_READ, self._hear_trainer)
        self.selector.register(woken, selectors.EVENT_READ, lambda: self._reap(os.read(woken, 4096)))
        # These errors mean that the trainer is gone, or has closed the pool.
        with suppress(EOFError, ConnectionError):
            while os.getppid() == self.trainer_pid:
                for key, _ in self.selector.select(TICK_S if self._is_busy() else IDLE_TICK_S):
                    key.data()
                self._dispatch()
                self._look_after(time.monotonic())
                self._tell(time.monotonic())
        for pid in children(os.getpid()):
            kill_tree(pid)

    def _is_busy(self) -> bool:
        return any(self.queues) or any(each.calls or each.asked_at for each in self.workers.values())

    def _tell(self, now: float) -> None:
        if self.news or now - self.told_at > HEARTBEAT_S:
            self.trainer.send(self.news)
            self.news, self.told_at = [], now

    def _hear_trainer(self) -> None:
        match self.trainer.recv():
            case Call() as call:
                self.queues[call.function].append(call)
            case set() as call_ids:
                self._cancel(call_ids)
            case None:
                raise EOFError

    def _cancel(self, call_ids: set[int]) -> None:
        """Drop calls, and end those under way with their workers, or as tasks of an event loop."""
        for index, queue in enumerate(self.queues):
            if any(call.id in call_ids for call in queue):
                self.queues[index] = deque(call for call in queue if call.id not in call_ids)
        for worker in [*self.workers.values()]:
            late = call_ids & worker.calls.keys()
            if late and worker.home is not None and self.functions[worker.home].is_async:
                worker.asked_at = worker.asked_at or time.monotonic()
                with suppress(OSError):
                    # A worker that has ended is noticed when it is reaped.
                    worker.connection.send(late)
                for call_id in late:
                    self._forget(worker, call_id)
            elif late:
                self._end(worker)
        self.retried -= call_ids

    def _hear(self, worker: Worker) -> None:
        try:
            said: Said = worker.connection.recv()
        except (EOFError, OSError):
            # How the worker ended is known when it is reaped.
            self._kill(worker)
            return
        if said.printed:
            self.news.append(News("printed", content=said.printed))
        if said.kind == "cancelled":
            worker.asked_at = None
        elif said.call_id in worker.calls:
            # A call that is not among them was cancelled meanwhile.
            self._forget(worker, said.call_id)
            self.news.append(News(said.kind, said.call_id, said.content))
        if not said.stays:
            self._end(worker)

    def _forget(self, worker: Worker, call_id: int) -> None:
        del worker.calls[call_id]
        worker.changed_at = time.monotonic()
        self.retried.discard(call_id)

    def _reap(self, _: bytes) -> None:
        with suppress(ChildProcessError):
            # The error means that there are no children.
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid in self.unreaped:
                    self.unreaped.discard(pid)
                    self._kill_left(pid)
                worker = self.workers.get(pid)
                while worker and not worker.connection.closed and worker.connection.poll():
                    # Messages that the worker sent before it ended.
                    self._hear(worker)
                if worker and pid in self.workers:
                    self._lose(worker, _how_it_ended(os.waitstatus_to_exitcode(status)))

    def _kill_left(self, ended: int) -> None:
        """Kill what a worker that has ended by itself has left: its group, and orphans, which come to this process."""
        kill_group(ended)
        for pid in {*children(os.getpid())} - self.unreaped - self.older:
            kill_tree(pid)

    def _lose(self, worker: Worker, why: str, kind: Literal["died", "memory"] = "died") -> None:
        """Remove a worker that did not end well, and retry its calls; those that were retried already have failed."""
        self._end(worker)
        for call, _ in reversed(worker.calls.values()):
            if call.id in self.retried:
                self.retried.discard(call.id)
                self.news.append(News(kind, call.id, why))
            else:
                self.retried.add(call.id)
                self.queues[call.function].appendleft(call)
                self.news.append(News("retry", call.id, why))
        if not worker.calls:
            self.news.append(News("retry", content=why))

    def _end(self, worker: Worker) -> None:
        self.workers.pop(worker.pid, None)
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        """Kill a worker with all that it has started; one that waits for a disk can't be killed, and is left."""
        if worker.pid in self.unreaped:
            kill_tree(worker.pid)
        if not worker.connection.closed:
            self.selector.unregister(worker.connection)
            worker.connection.close()

    def _look_after(self, now: float) -> None:
        """Check the time limits, event loops that hang, memory, and whether more workers are wanted."""
        if now - self.looked_at < TICK_S:
            return
        self.looked_at = now
        for worker in [*self.workers.values()]:
            late = [
                News("late", call.id, f"no value after {now - began_at:.1f} s")
                for call, began_at in worker.calls.values()
                if call.limit_s is not None and now - began_at > call.limit_s
            ]
            if late:
                self.news += late
                self.retried -= worker.calls.keys()
                self._end(worker)
            elif worker.asked_at is not None and now - worker.asked_at > GRACE_S:
                self._lose(worker, "was killed: it blocks its event loop")
        if now - self.weighed_at > MEMORY_TICK_S:
            self.weighed_at = now
            for worker in [*self.workers.values()]:
                if is_above(self.limits.memory_bytes, tree(worker.pid)):
                    self._lose(worker, "was killed: too large", "memory")
        self._grow(now)

    def _grow(self, now: float) -> None:
        """Raise the number of workers where calls wait while all workers sleep, or while none becomes free."""
        shared, running = self._shared(), self._running()
        next_up = self._next(running)
        is_short = next_up is not None and not any(worker.is_free for worker in shared)
        if not is_short or len(shared) < self.num_wanted:
            self.were_sleeping = False
            return
        most = self.limits.max_workers
        sleep_now = len(shared) < most and are_sleeping([worker.pid for worker in shared])
        is_stuck = now - max(worker.changed_at for worker in shared) > STUCK_S
        if sleep_now and self.were_sleeping and has_free_memory():
            self.num_wanted = min(4 * len(shared), most)
        elif is_stuck and len(shared) < most + len(self.functions) and next_up not in running:
            self.num_wanted += 1
        self.were_sleeping = sleep_now

    def _shared(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.home is None]

    def _running(self) -> Counter[int]:
        """Count the workers without a home that run each function."""
        return Counter(call.function for worker in self._shared() for call, _ in worker.calls.values())

    def _next(self, running: Counter[int]) -> int | None:
        """Return the place of the function whose turn it is: of those with calls waiting and without a home, the one
        with the fewest calls under way."""
        waiting = [i for i, each in enumerate(self.functions) if self.queues[i] and not each.is_resident]
        return min(waiting, key=lambda index: (running[index], self.queues[index][0].id), default=None)

    def _dispatch(self) -> None:
        for index, function in enumerate(self.functions):
            queue = self.queues[index]
            while function.is_resident and queue and (worker := self._home_of(index, queue[0])):
                self._send(worker, queue)
        running = self._running()
        while (index := self._next(running)) is not None and (worker := self._free_worker()):
            self._send(worker, self.queues[index])
            running[index] += 1

    def _home_of(self, index: int, call: Call) -> Worker | None:
        """Return the worker that a function lives in, if it takes one more call."""
        worker = next((each for each in self.workers.values() if each.home == index), None)
        if worker is None:
            return self._fork(index)
        # A call that may have ended a worker runs alone, so that no other call fails with it.
        is_alone = call.id in self.retried or not self.retried.isdisjoint(worker.calls)
        room = MAX_ASYNC_CALLS if self.functions[index].is_async and not is_alone else 1
        return worker if len(worker.calls) < room and not worker.connection.closed else None

    def _free_worker(self) -> Worker | None:
        shared = self._shared()
        free = next((worker for worker in shared if worker.is_free), None)
        return self._fork(None) if free is None and len(shared) < self.num_wanted else free

    def _fork(self, home: int | None) -> Worker | None:
        try:
            (ours, theirs), pid = Pipe(), os.fork()
        except OSError:
            # The machine has no memory or process id left: the call stays in its queue, to be tried again.
            return None
        if pid == 0:
            for each in (
                self.trainer,
                self.selector,
                ours,
                *(worker.connection for worker in self.workers.values()),
            ):
                each.close()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            work(theirs, self.functions, home, self.limits.memory_bytes)
        theirs.close()
        worker = self.workers[pid] = Worker(pid, ours, home)
        self.unreaped.add(pid)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker))
        return worker

    def _send(self, worker: Worker, queue: deque[Call]) -> None:
        """Send the first call of a queue to a worker."""
        try:
            worker.connection.send(queue[0])
        except OSError:
            # The worker has died while it had nothing to do.
            self._kill(worker)
            return
        call, worker.changed_at = queue.popleft(), time.monotonic()
        worker.calls[call.id] = (call, worker.changed_at)


def _how_it_ended(status: int) -> str:
    if status < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"was killed by signal {-status} ({names.get(-status, 'of real time')})"
    return f"exited with status {status}"
