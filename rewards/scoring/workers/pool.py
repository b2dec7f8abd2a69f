"""The trainer's side of the reward workers: hands out calls, gathers results, and survives whatever happens there.

A thread of its own does it, so that rewards run while the engine still samples. Calls of unknown or long duration go
out one by one, short ones in bundles (`queues.py`). Workers are added while all of them wait (for a network, a
lock, a clock), and removed when they hang, die or grow too large; what else a lost worker had to do is done again,
one call at a time, so that the guilty call is known.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from rewards.scoring.calling import Result
from rewards.scoring.specs import Reward, WorkerSettings
from rewards.scoring.workers.handles import NurseryHandle, WorkerHandle
from rewards.scoring.workers.jobs import CallOut, Job
from rewards.scoring.workers.load import LoadMeter, has_free_memory
from rewards.scoring.workers.memory import kill_tree
from rewards.scoring.workers.queues import Queues

TICK_S = 0.02
IDLE_TICK_S = 1.0
"""Where no call is under way: what a reward has started may still grow."""
SILENCE_S = 0.5
"""How long a worker may be silent over a bundle before others get the rest of it."""
MAX_ASYNC_CALLS = 64
"""Of an async reward at a time; it may set itself a lower limit."""
NEWS_S = 3.0
"""How long the news of how a worker ended may take."""
LOOK_S = 0.25
"""How often memory is looked at."""
IDLE_S = 600.0
MAX_PRINTED_CHARS = 20_000
"""Of what rewards print, in a run."""


class Pool:
    """Workers for the rewards of a run. Start it in the main thread, close it at the end."""

    def __init__(self, rewards: Sequence[Reward], settings: WorkerSettings) -> None:
        self.rewards, self.settings = rewards, settings
        self.printed: Callable[[str], None] = lambda text: print(text, file=sys.stderr, end="", flush=True)
        self.error: BaseException | None = None
        self.num_deaths = 0  # of workers that something else ended than this pool
        self._print_room = MAX_PRINTED_CHARS
        self._inbox: deque[tuple[Any, ...]] = deque()
        self._woken, self._wake = os.pipe()
        self._queues = Queues(rewards, settings.max_workers)
        self._workers: list[WorkerHandle] = []
        self._jobs: set[Job] = set()
        self._read_frames: set[int] = set()
        self._valued_at: dict[int, float] = {}  # when each reward gave its last value
        self._looked_at = self._looked_after_at = 0.0
        self._load = LoadMeter()
        self._num_base = min(settings.max_workers, max(2, min(4, os.cpu_count() or 1)))
        self._nursery: NurseryHandle
        self._thread = threading.Thread(target=self._live, name="rewards", daemon=True)

    @property
    def seconds(self) -> Mapping[int, float]:
        """How long each reward, by its index, takes for a rollout, or for a group if it looks at one as a whole."""
        return dict(self._queues.seconds)

    def start(self) -> None:
        """Load the rewards in a process of their own; ValueError if that does not work there."""
        self._nursery = NurseryHandle(self.rewards, self.settings)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._tell(("jobs", jobs))

    def expire(self, jobs: Sequence[Job], *, in_step: bool) -> None:
        """From now on each job has its reward's time limit left; in_step=False: from the reward's last value on."""
        self._tell(("expire", jobs, time.monotonic(), in_step))

    def close(self) -> None:
        self._tell(("close",))
        self._thread.join(timeout=5)
        self._nursery.close()
        if not self._thread.is_alive():
            for worker in self._workers:
                worker.close()
            os.close(self._woken)
            os.close(self._wake)

    def _tell(self, message: tuple[Any, ...]) -> None:
        self._inbox.append(message)
        os.write(self._wake, b"x")

    def _live(self) -> None:
        try:
            while not self._is_closing():
                busy = self._jobs or any(worker.lost_at or worker.is_busy for worker in self._workers)
                self._hear(wait(self._sources(), TICK_S if busy else IDLE_TICK_S))
                if time.monotonic() - self._looked_after_at > TICK_S / 2:
                    self._look_after()
                self._grow()
                self._dispatch()
        except BaseException as error:  # a bug of ours: who waits looks at this
            self.error = error

    def _is_closing(self) -> bool:
        while self._inbox:
            kind, *content = self._inbox.popleft()
            if kind == "close":
                return True
            if kind == "jobs":
                for job in content[0]:
                    self._jobs.add(job)
                    self._queues.add(job, range(len(job.results)))
            elif kind == "expire":
                jobs, now, in_step = content
                for job in jobs:
                    job.since, job.in_step = now, in_step
        return False

    def _sources(self) -> list[Any]:
        """Idle workers have nothing to say; how one ends is told by the nursery."""
        speaking = [each.connection for each in self._workers if each.lost_at is None and each.is_busy]
        return [self._woken, self._nursery.news, *speaking]

    def _hear(self, ready: Sequence[Any]) -> None:
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._nursery.news in ready:
            self._hear_nursery()
        for worker in [*self._workers]:
            if worker.connection in ready:
                self._hear_worker(worker)

    def _hear_nursery(self) -> None:
        try:
            news = self._nursery.hear()
        except (EOFError, OSError):
            self._restart()
            return
        if news is None:
            return
        pid, status = news
        for worker in [each for each in self._workers if each.pid == pid]:
            while worker in self._workers and worker.lost_at is None and worker.connection.poll():
                self._hear_worker(worker)  # its last words
            if worker in self._workers:
                died = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
                self._note_death(worker, died)
                self._lose(worker, worker.why_lost or died)

    def _note_death(self, worker: WorkerHandle, died: str) -> None:
        """Most deaths leave no other trace, since the calls are made again."""
        if not worker.why_lost:
            self.num_deaths += 1
            names = sorted({self.rewards[call.job.reward_index].name for call in worker.calls.values()})
            ran = f"{', '.join(names)}; that is done again" if names else "nothing"
            self._print(f"a process of the rewards {died} while it ran {ran}\n")

    def _restart(self) -> None:
        """The nursery is gone, and with it the workers."""
        for worker in [*self._workers]:
            worker.is_guilty = False
            self._lose(worker, "was lost with the process that it was forked from")
        self._nursery.close()
        self._nursery = NurseryHandle(self.rewards, self.settings)

    def _hear_worker(self, worker: WorkerHandle) -> None:
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            worker.lost_at = worker.lost_at or time.monotonic()  # the nursery will say why
            return
        worker.heard_at = time.monotonic()
        if kind == "results":
            results, printed = content
            for call_id, start, values, seconds in results:
                self._take(worker, call_id, start, values, seconds)
            self._print(printed)
        elif kind == "frames":
            if (call := worker.calls.pop(content[0], None)) is not None:
                self._read_frames.add(call.job.reward_index)
                self._queues.put_back(call)
        elif kind == "done":
            worker.calls.clear()
            worker.is_running = worker.has_been_split = False
        elif kind == "cancelled":
            worker.cancelled_at = None
        elif kind == "bug":
            self._print(content[0])
        elif kind == "retired":  # it has grown too large
            self._workers.remove(worker)
            worker.close()

    def _take(
        self, worker: WorkerHandle, call_id: int, start: int, values: Sequence[Result], seconds: float
    ) -> None:
        call = worker.calls.get(call_id)
        if call is None:  # cancelled meanwhile
            return
        reward_index = call.job.reward_index
        self._valued_at[reward_index] = time.monotonic()
        self._queues.measured(reward_index, seconds, len(values))
        call.job.fill(call.indices[start : start + len(values)], values)
        if not call.job.missing:
            self._jobs.discard(call.job)
        if worker.is_async:
            del worker.calls[call_id]

    def _print(self, text: str) -> None:
        if text and self._print_room > 0:
            self.printed(text[: self._print_room])
            self._print_room -= len(text)
            if self._print_room <= 0:
                self.printed("\n(what rewards print from here on is dropped)\n")

    def _lose(self, worker: WorkerHandle, why: str) -> None:
        """Take a dead worker out; its calls are made again, alone, and one that was alone has failed."""
        self._workers.remove(worker)
        worker.close()
        for call in worker.calls.values():
            if call.alone and call.missing and worker.is_guilty:
                text = f"RewardProcessError: the process of the reward {why}"
                self._fail(call.job, call.missing, text)
            elif call.missing:
                self._queues.add(call.job, call.missing, alone=True)
        worker.calls.clear()

    def _fail(self, job: Job, indices: Sequence[int], text: str) -> None:
        job.fill(indices, [text] * len(indices))
        if not job.missing:
            self._jobs.discard(job)

    def _look_after(self) -> None:
        """Time limits, hanging workers, memory."""
        now = self._looked_after_at = time.monotonic()
        for job in [job for job in self._jobs if self._is_over(job, now)]:
            job.is_late = True
            self._fail(job, sorted(job.missing), job.too_late(self._limit_s(job)))
        for worker in [*self._workers]:
            if worker.lost_at is not None:
                if now - worker.lost_at > NEWS_S:
                    self._lose(worker, worker.why_lost or "ended")
            elif worker.is_async:
                self._cancel_expired(worker, now)
            elif worker.is_running:
                self._unblock(worker, now)
            elif worker.resident is None and now - worker.heard_at > IDLE_S:
                self._dismiss(worker)
        self._check_memory(now)
        self._make_room(now)

    def _limit_s(self, job: Job) -> float:
        return self.rewards[job.reward_index].spec.timeout_s

    def _is_over(self, job: Job, now: float) -> bool:
        return now > job.waits_since(self._valued_at.get(job.reward_index, 0.0)) + self._limit_s(job)

    def _unblock(self, worker: WorkerHandle, now: float) -> None:
        """Kill a worker that hangs in what nobody waits for any more; give others the rest of a bundle that hangs."""
        silent_s = now - worker.heard_at
        if silent_s < 5 * TICK_S or worker.connection.poll():  # it has spoken; we have not listened yet
            return
        wanted = worker.wanted
        is_late = any(call.job.is_late for call in worker.calls.values())
        works_in_vain = not wanted and worker.resident is None and silent_s > SILENCE_S
        if is_late or works_in_vain:
            self._kill_and_redo(worker, wanted, "was killed: over its time limit")
        elif worker.resident is not None:
            self._limit_call(worker, wanted, silent_s)
        elif silent_s > SILENCE_S and self._can_be_split(worker):
            worker.has_been_split = True
            worker.send(("stop",))
            self._queues.measured(
                wanted[0].job.reward_index, silent_s
            )  # it is not among the fast ones any more
            for call in wanted:  # but the one that it is at: results are never held back for long
                self._queues.add(
                    call.job, call.missing[1:] if call is wanted[0] else call.missing, alone=True
                )

    def _limit_call(self, worker: WorkerHandle, wanted: Sequence[CallOut], silent_s: float) -> None:
        """An object's calls wait for each other: one that takes a quarter of the time limit has failed, so that the
        others get theirs."""
        if not wanted or silent_s < 0.25 * self._limit_s(wanted[0].job):
            return
        text = f"TimeoutError: a call of {silent_s:.1f} s; an object may take a quarter of timeout_s for each"
        at = wanted[0].missing[:1] if self._queues.takes_one(wanted[0].job) else wanted[0].missing
        self._fail(wanted[0].job, at, text)
        self._kill_and_redo(worker, [call for call in wanted if call.missing], "was killed: a call hangs")

    def _kill_and_redo(self, worker: WorkerHandle, wanted: Sequence[CallOut], why: str) -> None:
        for call in wanted:
            self._queues.add(call.job, call.missing, alone=worker.resident is None)
        worker.calls.clear()
        self._kill(worker, why)

    def _make_room(self, now: float) -> None:
        """When no worker is free and one reward hangs in all or most of them, others get one of these."""
        workers, running = self._elastic(), self._running()
        if len(workers) < self._num_base or not all(worker.is_running for worker in workers):
            return
        many = min(len(workers), self._queues.most_workers + 1)
        for worker in workers:
            at = worker.at
            if at is None or now - worker.heard_at < SILENCE_S or worker.connection.poll():
                continue
            reward_index = at.job.reward_index
            if running[reward_index] >= many and self._queues.others_wait(reward_index):
                self._kill_and_redo(worker, worker.wanted, "was killed: others wait")
                return

    def _can_be_split(self, worker: WorkerHandle) -> bool:
        num_parts = sum(
            len(call.missing) if self._queues.takes_one(call.job) else 1 for call in worker.wanted
        )
        return not worker.has_been_split and num_parts > 1

    def _cancel_expired(self, worker: WorkerHandle, now: float) -> None:
        late = [id for id, call in worker.calls.items() if not call.missing]
        if late:
            worker.send(("cancel", late))
            worker.cancelled_at = worker.cancelled_at or now
            for call_id in late:
                del worker.calls[call_id]
        if worker.cancelled_at is not None and now - worker.cancelled_at > 2 * SILENCE_S:
            self._kill(worker, "was killed: it blocks its event loop")

    def _check_memory(self, now: float) -> None:
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        why = f"was killed: more than rewards_workers.memory_gib={self.settings.memory_gib:g}"
        for worker in self._nursery.above(self.settings.memory_gib * 2**30, self._workers):
            if worker.lost_at is None:
                self._note_death(worker, why)
                self._kill(worker, why)

    def _kill(self, worker: WorkerHandle, why: str) -> None:
        worker.why_lost, worker.lost_at = why, time.monotonic()
        if worker.pid:
            kill_tree(worker.pid)

    def _dismiss(self, worker: WorkerHandle) -> None:
        """End an idle worker that is one too many."""
        if len(self._elastic()) > self._num_base:
            self._workers.remove(worker)
            worker.close()

    def _elastic(self) -> list[WorkerHandle]:
        return [each for each in self._workers if each.resident is None and each.lost_at is None]

    def _grow(self) -> None:
        """Fork workers where calls wait and nobody is free: up to a base number, more if all of them are waiting."""
        num_queued = self._queues.num_shared()
        workers = self._elastic()
        if not num_queued or not all(worker.is_running for worker in workers):
            return
        room = self._num_base - len(workers)
        if room <= 0 and self._load.are_waiting(workers) and has_free_memory():
            room = min(3 * len(workers), self.settings.max_workers - len(workers))
        for _ in range(min(room, num_queued)):
            self._fork(None)

    def _fork(self, resident: int | None) -> WorkerHandle:
        self._workers.append(self._nursery.fork(resident))
        return self._workers[-1]

    def _dispatch(self) -> None:
        for resident, queue in self._queues.of_residents():
            for worker in self._home_of(resident, queue):
                while queue and self._has_room(worker, queue[0]):
                    most = MAX_ASYNC_CALLS - len(worker.calls) if worker.is_async else None
                    if bundle := self._queues.bundle(queue, most):
                        self._send(worker, bundle)
        for worker in self._elastic():
            while not worker.is_running and (queue := self._queues.next(self._running())) is not None:
                if bundle := self._queues.bundle(queue):
                    self._send(worker, bundle)

    def _running(self) -> Counter[int]:
        """How many workers are at each reward."""
        busy = [worker.at for worker in self._elastic() if worker.is_running]
        return Counter(call.job.reward_index for call in busy if call is not None)

    def _home_of(self, resident: int, queue: deque[CallOut]) -> list[WorkerHandle]:
        found = [each for each in self._workers if each.resident == resident]
        return found or ([self._fork(resident)] if queue else [])

    def _has_room(self, worker: WorkerHandle, call: CallOut) -> bool:
        if worker.lost_at is not None:
            return False
        if not worker.is_async or call.alone:
            return not worker.calls and not worker.is_running
        return len(worker.calls) < MAX_ASYNC_CALLS and not any(each.alone for each in worker.calls.values())

    def _send(self, worker: WorkerHandle, bundle: Sequence[CallOut]) -> None:
        payloads: dict[tuple[int, bool], bytes] = {}
        calls = []
        for call in bundle:
            with_frames = call.job.reward_index in self._read_frames
            key = (id(call.job.payload), with_frames)
            if key not in payloads:
                try:
                    payloads[key] = call.job.payload.dump(with_frames=with_frames)
                except Exception as error:  # a column that can't be sent
                    self._fail(call.job, call.missing, f"{type(error).__name__}: {error}")
                    continue
            calls.append((call.id, call.job.reward_index, [*payloads].index(key), call.indices))
            worker.calls[call.id] = call
        if not calls:
            return
        worker.heard_at, worker.is_running = time.monotonic(), not worker.is_async
        worker.send(("run", calls, [*payloads.values()]))
