"""Starts a training run: `egogrpo train [options of accelerate launch] CONFIG.yaml ... key=value ...`.

As `accelerate launch [options] grpo/train.py ...`, but for its end: a run that is stopped (Ctrl-C, SIGTERM, SIGUSR1)
leaves the trainer's one line and its exit status, 75, where the launcher adds a traceback and ends with 1. All that is
behind the first config or key=value is the run's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError

from grpo.config.load import load_config
from grpo.run.folder import RunDir
from grpo.run.progress import under_way
from grpo.run.stopping import EXIT_CODE, SIGNALS
from grpo.workers.processes import children

SCRIPT = Path(__file__).parents[1] / "train.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the run that the command line names and wait for its end; returns the exit status."""
    with under_way("importing accelerate", is_shown=sys.stderr.isatty()):
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.prog, parser.description = "egogrpo train", __doc__
    options = parser.parse_args(argv)
    settings = [options.training_script, *options.training_script_args]
    try:
        run_dir = RunDir(load_config(settings).run_dir)
    except ValueError as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    options.training_script, options.training_script_args = str(SCRIPT), settings
    for number in SIGNALS:
        signal.signal(number, _pass_on)
    try:
        launch_command(options)
    except (CalledProcessError, ChildFailedError, SignalException):
        return EXIT_CODE if run_dir.stopped_file.exists() else 1
    return 0


def _pass_on(number: int, frame: object) -> None:
    """Hand a signal to the run's processes, which stop after their step, and go on waiting for them."""
    for pid in children(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
