"""The end of a run before its last step: by a signal, after a checkpoint, or by an error, in one line.

SIGTERM and SIGUSR1 are what schedulers send, SIGINT is Ctrl-C. Before training they end the run at once. In training
the step is finished and a checkpoint saved, unless that takes longer than `checkpoint.stop_within_s`.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

from grpo.run.blot import without_secrets
from grpo.run.folder import RunDir, best_checkpoint, checkpoint_steps
from grpo.run.terminal import release_terminal
from grpo.workers.processes import children, end_with_parent

EXIT_CODE = os.EX_TEMPFAIL
"""The exit status of a run that was stopped: 75, "try again later" (sysexits.h)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN_AFTER_S = 1.0
"""Two Ctrl-C so far apart are meant as two; a launcher may pass on one of the terminal's a second time."""
START_WITHIN_S = 20.0
"""How long a start may go on after a signal, to close what it has opened."""
POLL_S = 1.0
"""The seconds between two looks at whether the run's other processes are still there."""
END = b"\0"
"""What the thread is told at the end, through the pipe that else brings the numbers of signals."""
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "egogrpo train", "grpo.commands train")


class Stopped(BaseException):
    """The end of a run on request, like KeyboardInterrupt no failure; its text says what was saved."""


class StopRequest:
    """The signals that ask this process to stop, between `with` and the block's end.

    A thread hears of them too, since a handler runs only between bytecodes: a main thread that waits in CUDA or for
    another process runs none. The thread bounds what may follow.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The first signal that came."""
        self._asked_at = 0.0
        self._within_s: float | None = None
        self._has_trained = False
        self._peers = peers()
        self._file: Path | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._heard, self._hears = os.pipe()
        os.set_blocking(self._hears, False)
        self._woken = signal.set_wakeup_fd(self._hears, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._hears, END)
        self._thread.join()
        os.close(self._heard)
        os.close(self._hears)

    def tells(self, file: Path) -> None:
        """Write into this file, from now on, why the run was stopped: a launcher keeps the exit status to itself."""
        file.unlink(missing_ok=True)
        self._file = file

    def end(self, why: str) -> None:
        """Say why the run was stopped, in the first process, and that it can go on."""
        line = f"{why}; the same command goes on"
        write_line(line)
        # A disk that is full does not change that the run was stopped.
        with suppress(OSError):
            if self._file is not None:
                self._file.write_text(line + "\n", encoding="utf-8")

    def training_begins(self, within_s: float) -> None:
        """Let signals wait for the step's end from now on, for so many seconds at most."""
        self._within_s = within_s

    def training_ends(self) -> None:
        """Let a signal change nothing from now on, but that what is left has to end in time."""
        self._has_trained = True

    def is_asked(self) -> bool:
        return self.name is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.name is None:
            self.name, self._asked_at = name, now
            if self._within_s is None:
                self._end_with_peers()
                raise Stopped(f"stopped by {name} before the first step")
        elif (
            self._within_s is not None
            and number == signal.SIGINT
            and self.name == name
            and now - self._asked_at > AGAIN_AFTER_S
        ):
            raise Stopped("stopped by SIGINT in the midst of a step")

    def _listen(self) -> None:
        """Say what the first signal asks for, and end this process if it does not end itself in time."""
        while (number := os.read(self._heard, 1)[0]) not in SIGNALS:
            if number == END[0]:
                return
        name, within_s = signal.Signals(number).name, self._within_s or START_WITHIN_S
        self._end_with_peers()
        if self._within_s is not None and not self._has_trained:
            write_line(
                f"{name}: the run stops after this step, with a checkpoint (Ctrl-C again: at once, without one)"
            )
        end = time.monotonic() + within_s
        while (left_s := end - time.monotonic()) > 0:
            has_heard, _, _ = select.select([self._heard], [], [], min(left_s, POLL_S))
            if has_heard and END in os.read(self._heard, 1024):
                return
            # Before training each process ends by itself, at the same signal.
            if self._within_s is not None:
                self._end_with_peers()
        release_terminal()
        self.end(f"stopped by {name}: {self._what_took_long()}")
        os._exit(EXIT_CODE)

    def _what_took_long(self) -> str:
        if self._has_trained:
            return "what is done after training took too long"
        if self._within_s is None:
            return "the start was not interrupted in time"
        return (
            f"no step ended within checkpoint.stop_within_s={self._within_s:g} s, so nothing was saved since the "
            "newest checkpoint"
        )

    def _end_with_peers(self) -> None:
        """End this process if another one of the run has: it would wait for that one until the launcher kills it."""
        if not self._has_trained and any(map(_has_ended, self._peers)):
            release_terminal()
            write_line("another process of the run has ended, and this one with it")
            os._exit(1)


def peers() -> list[int]:
    """Return the ids of the run's other processes on this machine: they have the same launcher and command line."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return []
    mine, found = psutil.Process().cmdline(), []
    for pid in children(os.getppid()):
        with suppress(psutil.Error):
            if pid != os.getpid() and psutil.Process(pid).cmdline() == mine:
                found.append(pid)
    return found


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_line(text: str) -> None:
    """Write a line, in the first process, from wherever a signal has struck: print may be under way."""
    # Whoever read the error stream may be gone, and the process is to end all the same.
    with suppress(OSError):
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"\n{text}\n".encode())


def end_with_launcher() -> None:
    """Let the kernel ask this process to stop when its launcher ends, killed alone: nobody would watch the run."""
    # The first process of a container has no parent, and /proc may hide it (hidepid): then nothing is asked for.
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if parent.name().startswith(("python", "egogrpo", *LAUNCHERS)) and any(
            name in " ".join(parent.cmdline()) for name in LAUNCHERS
        ):
            end_with_parent(signal.SIGTERM)
            # The kernel says nothing of a launcher that had ended before it was asked.
            if os.getppid() != parent.pid:
                os.kill(os.getpid(), signal.SIGTERM)


def failure_line(error: Exception, run_dir: RunDir, rank: int) -> str:
    """Return why a run has failed in one line, and store the traceback in the run's folder."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, OSError) and error.filename is None:
        # A file that is open already does not tell its name when the disk is full.
        first += f" (in {run_dir.path})"
    kind = "" if type(error) in (RuntimeError, ValueError) else f"{type(error).__name__}: "
    steps, best = checkpoint_steps(run_dir.checkpoints), best_checkpoint(run_dir.checkpoints)
    goes_on = f"the newest checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint"
    goes_on += f", the one with the best held-out score of step {best}" if best is not None else ""
    file = run_dir.path / f"traceback_{rank}.txt"
    try:
        file.write_text(without_secrets("".join(traceback.format_exception(error))), encoding="utf-8")
    except OSError as why:
        if not isinstance(error, OSError):
            traceback.print_exception(error)
        return f"error: {kind}{first}; {goes_on}; {why}"
    return f"error: {kind}{first}; {goes_on}; {file} has the traceback"
