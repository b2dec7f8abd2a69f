"""A whole run whose live view stands in a terminal, and the Ctrl-C that is typed there."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo.run.folder import checkpoint_steps, read_rows
from grpo.run.stopping import EXIT_CODE
from tests.run.test_terminal import Terminal
from tests.support import tiny
from tests.support.runs import SMALL, data

LONGEST_S = 300.0
FEW = ("num_steps=200", "eval.every_steps=0", "checkpoint.every_steps=0", "log.live=true")


def read_until(is_so: Callable[[], object], shown: Terminal) -> None:
    """Read what is printed, which would block its process otherwise, until something is so."""
    give_up_at = time.monotonic() + LONGEST_S
    while not is_so():
        assert time.monotonic() < give_up_at, "\n".join(shown.seen())
        shown.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_of_a_live_run_saves_its_step_and_gives_the_terminal_back(
    clips: Path, tmp_path: Path
) -> None:
    """It is typed, so that the terminal sends it to all processes of the run."""
    shown, run_dir = Terminal(), tmp_path / "run"
    modes = termios.tcgetattr(shown.slave)
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "grpo/train.py", *SMALL, *data(clips), f"run_dir={run_dir}", *FEW],
        cwd=tiny.ROOT,
        env=environment,
        stdin=shown.slave,
        stdout=shown.slave,
        stderr=shown.slave,
        start_new_session=True,
        # The terminal is the session's own, and so sends it signals.
        preexec_fn=lambda: fcntl.ioctl(shown.slave, termios.TIOCSCTTY, 0),
    )
    try:
        read_until(lambda: any("step 1 of 200" in line for line in shown.seen()), shown)
        assert shown.screen.margins is not None
        os.write(shown.master, b"\x03")
        read_until(lambda: process.poll() is not None, shown)
    finally:
        process.kill()
    assert process.returncode == EXIT_CODE
    [step] = checkpoint_steps(run_dir / "checkpoints")
    assert read_rows(run_dir / "metrics.jsonl")[-1]["step"] == step >= 1
    lines = [line for line in shown.seen() if line]
    assert any("SIGINT: the run stops after this step, with a checkpoint" in line for line in lines)
    assert not any("Traceback" in line for line in lines)
    assert shown.screen.margins is None and not shown.screen.cursor.hidden
    assert termios.tcgetattr(shown.slave) == modes
    shown.prints("$ next\n")
    assert [line for line in shown.seen() if line] == [*lines, "$ next"]
