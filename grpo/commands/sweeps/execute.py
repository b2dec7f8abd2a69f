"""Runs as processes of this machine: each on GPUs of its own, with a log, tried twice, none stopping the others."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from grpo.commands.sweeps.plan import LaunchConfig, Run

TRAIN = Path(__file__).parents[2] / "train.py"
PATIENCE_S = 10.0
"""The time between asking a run to stop and killing it."""

T = TypeVar("T")
_ERROR = re.compile(r"(\[rank\d+\]: *)?(error:|[\w.]*(Error|Exception|Exit|Interrupt)\b)")
_OF_THE_LAUNCHER = ("CalledProcessError", "ChildFailedError")  # say only that the run below them failed


class Runner(Protocol):
    """Something that can carry out runs, called from several threads."""

    is_stopped: bool

    def run(self, run: Run) -> str | None:
        """Carry a run out to its end; why it failed, or None."""
        ...

    def stop(self) -> None:
        """End what is running, and start nothing more."""
        ...


def command_of(run: Run, launch: LaunchConfig) -> list[str]:
    """How a run is started. Port 0 is any free one: runs in parallel must not meet."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    processes = ["--num_processes", str(launch.num_processes), "--main_process_port", "0"]
    return [*accelerate, "--config_file", launch.config_file, *processes, str(TRAIN), *run.argv]


class LocalRunner:
    """Carries runs out on this machine, as many at a time as it has slots."""

    def __init__(self, launch: LaunchConfig, slots: Sequence[str | None]) -> None:
        """slots: for each run at a time, its CUDA_VISIBLE_DEVICES, or None on a machine without GPUs."""
        self.launch = launch
        self.is_stopped = False
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, run: Run) -> str | None:
        slot = self._free.get()
        try:
            return carry_out(run, self.launch, environment_of(slot), start=self._start)
        finally:
            self._free.put(slot)

    def stop(self) -> None:
        with self._lock:
            self.is_stopped = True
            running = [process for process in self._processes if process.poll() is None]
        for process in running:
            _signal_group(process, signal.SIGTERM)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
            _signal_group(process, signal.SIGKILL)

    def _start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self.is_stopped:
                return None
            process = start_group(command, **options)
            self._processes.add(process)
            return process


def carry_out(
    run: Run,
    launch: LaunchConfig,
    environment: Mapping[str, str],
    *,
    start: Callable[..., subprocess.Popen[bytes] | None],
) -> str | None:
    """Start a run, wait for it and say why it failed, or None. Its output is added to its log."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = command_of(run, launch)
    with run.log.open("ab") as file:
        offset = file.tell()
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = start(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        if process is None:
            return "stopped"
        try:
            status = process.wait()
        finally:
            end(process)
    if status == 0 and run.is_finished():
        return None
    words = last_words(run.log.read_bytes()[offset:].decode(errors="replace"))
    return f"exit status {status}: {words}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a run: a worker that outlives it would keep its GPU."""
    if process.poll() is None:
        process.terminate()
    _signal_group(process, signal.SIGKILL)
    process.wait()


def last_words(log: str) -> str:
    """The line of a log that says why its run ended: the last error that is not the launcher's, or the last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    errors = [
        line for line in lines if _ERROR.match(line) and not any(name in line for name in _OF_THE_LAUNCHER)
    ]
    return (errors or lines or ["nothing in its log"])[-1]


def run_all(
    runs: Sequence[Run],
    runner: Runner,
    *,
    jobs: int,
    say: Callable[[str], None],
    after_each: Callable[[dict[str, str]], None],
) -> dict[str, str]:
    """Carry out what is not finished yet; the failed runs' labels, each with the reason.

    after_each: called with the failures so far whenever a run has ended, in the calling thread.
    """
    todo = [run for run in runs if not run.is_finished()]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    failures: dict[str, str] = {}

    def carry_out_one(run: Run) -> None:
        if reason := with_retry(run, runner, say):
            failures[run.label] = reason

    in_threads(carry_out_one, todo, runner, jobs=jobs, after_each=lambda: after_each(failures))
    return failures


def in_threads(
    task: Callable[[T], None],
    items: Iterable[T],
    runner: Runner,
    *,
    jobs: int,
    after_each: Callable[[], None],
) -> None:
    """Do a task for each item, so many at a time; after_each is called in this thread. Ctrl-C stops the runner."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                after_each()
        except BaseException:  # Ctrl-C above all
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise


def with_retry(run: Run, runner: Runner, say: Callable[[str], None]) -> str | None:
    """Carry a run out, once more if it fails; why it failed the second time, or None."""
    say(f"{run.label}: {run.log}")
    reason = runner.run(run)
    if reason and not runner.is_stopped:
        say(f"{run.label}: failed, tried once more: {reason}")
        reason = runner.run(run)
    if not runner.is_stopped:
        say(f"{run.label}: {f'FAILED: {reason}' if reason else 'finished'}")
    return reason


def slots_of_machine(jobs: int | None, num_processes: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each run at a time; [None, ...] where there are no GPUs.

    Raises ValueError if the machine's GPUs don't suffice.
    """
    gpus = visible_gpus()
    if not gpus:
        return [None] * (jobs or 1)
    room = len(gpus) // num_processes
    if room < (jobs or 1):
        raise ValueError(
            f"--jobs {jobs or 1}: {len(gpus)} GPUs have room for {room} runs of {num_processes} processes"
        )
    starts = [index * num_processes for index in range(jobs or room)]
    return [",".join(gpus[start : start + num_processes]) for start in starts]


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that this process may use."""
    limit = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limit is not None:
        return [name for part in limit.split(",") if (name := part.strip()) and name != "-1"]
    import torch  # two seconds, and only here

    return [str(index) for index in range(torch.cuda.device_count())]


def environment_of(slot: str | None) -> dict[str, str]:
    """The environment of a run in a slot."""
    if slot is None:
        # Small models on shared cores are slower with more threads, often by far (Makefile).
        return {"OMP_NUM_THREADS": "1", **os.environ}
    return {**os.environ, "CUDA_VISIBLE_DEVICES": slot}


def start_group(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a group of its own: Ctrl-C reaches the sweep alone, which then ends the whole group and not
    only the launcher."""
    return subprocess.Popen(command, start_new_session=True, **options)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process and what it started, if anything of it is left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return
