"""Starts a training run: `egogrpo train [options of accelerate launch] CONFIG.yaml ... key=value ...`.

As `accelerate launch [options] grpo/train.py ...`, but for its end: a run that is stopped (Ctrl-C, SIGTERM, SIGUSR1)
leaves the trainer's one line and its exit status, 75, where the launcher adds a traceback and ends with 1. All that is
behind the first config or key=value is the run's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Never

from grpo.config.explained import USAGE, explained
from grpo.config.load import load_config
from grpo.run.folder import RunDir
from grpo.run.progress import under_way
from grpo.run.stopping import EXIT_CODE, SIGNALS
from grpo.run.terminal import release_terminal
from grpo.workers.processes import children
from rewards.scoring.loading import did_you_mean

SCRIPT = Path(__file__).parents[1] / "train.py"

OPTIONS = """\
Options of `accelerate launch`, before the first config (`accelerate launch --help` lists all):
  --config_file FILE     processes and their precision: a file of launch/accelerate/
  --num_processes N      processes in all, one for each GPU
  --num_machines N       machines; with --machine_rank, --main_process_ip, --main_process_port

Every setting, with its default (??? where there is none):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the run that the command line names and wait for its end; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*argv}:
        print(USAGE, __doc__, OPTIONS, *explained(), sep="\n")
        return 0
    if not argv:
        print(USAGE, file=sys.stderr)
        return 2
    with under_way("importing accelerate"):
        from accelerate.commands.launch import launch_command
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        options = launcher_options(argv)
        settings = [options.training_script, *options.training_script_args]
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
    finally:
        # A trainer that was killed could not do it.
        release_terminal()
    return 0


def launcher_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the launcher's options, with the run's arguments as `training_script`, `training_script_args`.

    Raises ValueError, of one line, where argparse would print the usage of all of accelerate's options.
    """
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    known = {name for action in parser._actions for name in action.option_strings}

    def refuse(message: str) -> Never:
        for arg in argv:
            name = arg.partition("=")[0]
            if name.startswith("-") and name not in known:
                raise ValueError(
                    f"no option {name}{did_you_mean(name, known)}; accelerate launch --help lists all"
                )
        if "training_script" in message:
            raise ValueError(f"no CONFIG.yaml is named; {USAGE.splitlines()[0]}")
        raise ValueError(message)

    # With exit_on_error=False argparse still ends the process at an unknown option.
    parser.error = refuse
    options = parser.parse_args(argv)
    for arg in options.training_script_args:
        if arg.partition("=")[0] in known:
            raise ValueError(f"{arg}: options of the launcher stand before {options.training_script}")
    file = options.config_file
    if file is not None and not Path(file).is_file():
        there = sorted(map(str, Path(file).parent.glob("*.yaml")))
        listed = f"; there are {', '.join(there)}" if there else ""
        raise ValueError(f"--config_file: no file {file}{did_you_mean(file, there)}{listed}")
    return options


def _pass_on(number: int, frame: object) -> None:
    """Hand a signal to the run's processes, which stop after their step, and go on waiting for them."""
    for pid in children(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
