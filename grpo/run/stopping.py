"""The end of a run before its last step: by a signal, after a checkpoint, or by an error, in one line.

SIGTERM and SIGUSR1 are what schedulers send, SIGINT is Ctrl-C. Before training they end the run at once. In training
the step is finished and a checkpoint saved, unless that takes longer than `checkpoint.stop_within_s`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from types import FrameType
from typing import Self

import psutil

from grpo.run.folder import RunDir, best_checkpoint, checkpoint_steps
from grpo.workers.processes import end_with_parent

EXIT_CODE = os.EX_TEMPFAIL
"""The exit status of a run that was stopped: 75, "try again later" (sysexits.h)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN_AFTER_S = 1.0
"""Two Ctrl-C so far apart are meant as two; a launcher may pass on one of the terminal's a second time."""
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")


class Stopped(BaseException):
    """The end of a run on request, like KeyboardInterrupt no failure; its text says what was saved."""


class StopRequest:
    """The signals that ask this process to stop, between `with` and the block's end."""

    def __init__(self) -> None:
        self.name: str | None = None
        """The first signal that came in training."""
        self._asked_at = 0.0
        self._within_s: float | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._within_s = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def training_begins(self, within_s: float) -> None:
        """Let signals wait for the step's end from now on, for so many seconds at most."""
        self._within_s = within_s

    def is_asked(self) -> bool:
        return self.name is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._within_s is None:
            raise Stopped(f"stopped by {name} before the first step")
        if self.name is None:
            self.name, self._asked_at = name, now
            say(
                f"{name}: the run stops after this step, with a checkpoint (Ctrl-C again: at once, without one)"
            )
            threading.Thread(target=self._give_up, args=(self._within_s,), daemon=True).start()
        elif number == signal.SIGINT and self.name == name and now - self._asked_at > AGAIN_AFTER_S:
            raise Stopped("stopped by SIGINT in the midst of a step")

    def _give_up(self, within_s: float) -> None:
        time.sleep(within_s)
        if self._within_s is not None:
            say(
                f"stopped by {self.name}: no step ended within checkpoint.stop_within_s={within_s:g} s, so nothing "
                "was saved; the same command goes on from the newest checkpoint"
            )
            os._exit(EXIT_CODE)


def say(text: str) -> None:
    """Write a line from wherever a signal has struck: print may be under way."""
    os.write(2, f"\n{text}\n".encode())


def end_with_launcher() -> None:
    """Let the kernel ask this process to stop when its launcher ends, killed alone: nobody would watch the run."""
    # The first process of a container has no parent, and /proc may hide it (hidepid): then nothing is asked for.
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if parent.name().startswith(("python", *LAUNCHERS)) and any(
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
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as why:
        if not isinstance(error, OSError):
            traceback.print_exception(error)
        return f"error: {kind}{first}; {goes_on}; {why}"
    return f"error: {kind}{first}; {goes_on}; {file} has the traceback"
