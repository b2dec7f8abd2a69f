"""Runs as processes of this machine: each on GPUs of its own, with a log, tried twice, none stopping the others."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from grpo.commands.sweeps.plan import LaunchConfig, Run

TRAIN = Path(__file__).parents[2] / "train.py"
PATIENCE_S = 10.0
"""The time between asking a run to stop and killing it."""

Slot = str | None
"""The CUDA_VISIBLE_DEVICES of one run at a time, or None on a machine without GPUs."""
Runner = Callable[[Run, Slot], Awaitable[str | None]]
"""Carries a run out to its end and says why it failed, or None. The run ends with it if it is cancelled."""

_ERROR = re.compile(r"(\[rank\d+\]: *)?(error:|[\w.]*(Error|Exception|Exit|Interrupt)\b)")
# Say only that the run below them failed.
_OF_THE_LAUNCHER = ("CalledProcessError", "ChildFailedError")


async def run_all(
    runs: Iterable[Run],
    runner: Runner,
    slots: Sequence[Slot],
    *,
    say: Callable[[str], None],
    after_each: Callable[[dict[str, str]], None],
) -> dict[str, str]:
    """Carry out what is not finished yet; the failed runs' labels, each with the reason.

    The next run is asked for when a slot is free for it. after_each: called with the failures so far whenever a run has
    ended.
    """
    failures: dict[str, str] = {}
    # Of all slots.
    queue = iter(runs)

    async def work(slot: Slot) -> None:
        for run in queue:
            if run.is_finished():
                say(f"{run.label}: is finished already")
                continue
            if reason := await with_retry(run, runner, slot, say):
                failures[run.label] = reason
            after_each(failures)

    try:
        # Unlike `gather`, a group waits until all its runs have ended when it is cancelled.
        async with asyncio.TaskGroup() as group:
            for slot in slots:
                group.create_task(work(slot))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return failures


async def with_retry(run: Run, runner: Runner, slot: Slot, say: Callable[[str], None]) -> str | None:
    """Carry a run out, once more if it fails; why it failed the second time, or None."""
    say(f"{run.label}: {run.log}")
    if reason := await runner(run, slot):
        say(f"{run.label}: failed, tried once more: {reason}")
        reason = await runner(run, slot)
    say(f"{run.label}: {f'FAILED: {reason}' if reason else 'finished'}")
    return reason


def command_of(run: Run, launch: LaunchConfig) -> list[str]:
    """How a run is started. Port 0 is any free one: runs in parallel must not meet."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    processes = ["--num_processes", str(launch.num_processes), "--main_process_port", "0"]
    return [*accelerate, "--config_file", launch.config_file, *processes, str(TRAIN), *run.argv]


async def carry_out(
    run: Run, launch: LaunchConfig, environment: Mapping[str, str], *, in_own_group: bool = True
) -> str | None:
    """Start a run, wait for it and say why it failed, or None. Its output is added to its log.

    in_own_group: Ctrl-C reaches the sweep alone, which then ends the run's whole group and not only the launcher.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = command_of(run, launch)
    with run.log.open("ab") as file:
        offset = file.tell()
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=file,
            stderr=STDOUT,
            env=environment,
            start_new_session=in_own_group,
        )
        try:
            status = await process.wait()
        finally:
            await end(process, in_own_group=in_own_group)
    if status == 0 and run.is_finished():
        return None
    words = last_words(run.log.read_bytes()[offset:].decode(errors="replace"))
    return f"exit status {status}: {words}"


async def end(process: Process, *, in_own_group: bool) -> None:
    """End a run that goes on, and kill what is left of it: a worker that outlives it would keep its GPU."""
    send = partial(os.killpg, process.pid) if in_own_group else process.send_signal
    with suppress(ProcessLookupError, PermissionError, TimeoutError):
        try:
            if process.returncode is None:
                send(signal.SIGTERM)
                async with asyncio.timeout(PATIENCE_S):
                    await process.wait()
        finally:
            send(signal.SIGKILL)
    await process.wait()


def last_words(log: str) -> str:
    """The line of a log that says why its run ended: the last error that is not the launcher's, or the last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    errors = [
        line for line in lines if _ERROR.match(line) and not any(name in line for name in _OF_THE_LAUNCHER)
    ]
    return (errors or lines or ["nothing in its log"])[-1]


def slots_of_machine(jobs: int | None, num_processes: int) -> list[Slot]:
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
    # Two seconds, and only here.
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def environment_of(slot: Slot) -> dict[str, str]:
    """The environment of a run in a slot."""
    if slot is None:
        # Small models on shared cores are slower with more threads, often by far (Makefile).
        return {"OMP_NUM_THREADS": "1", **os.environ}
    return {**os.environ, "CUDA_VISIBLE_DEVICES": slot}
