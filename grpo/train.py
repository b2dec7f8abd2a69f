"""A training run: `accelerate launch grpo/train.py CONFIG.yaml ... key=value ...`.

A run that is started again with the same arguments resumes. Mistakes in the arguments, the rewards and the data are
reported before a model is loaded; the cheapest checks come first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Never

from grpo.config.explained import USAGE, explained
from grpo.config.load import load_config, to_yaml
from grpo.config.schema import Config
from grpo.policy.model_folder import find_model_folder
from grpo.run.blot import without_secrets
from grpo.run.folder import RunDir
from grpo.run.manifest import fingerprint, make_manifest, model_fingerprint
from grpo.run.progress import say, say_anything, under_way, while_read
from grpo.run.stopping import EXIT_CODE, SIGNALS, Stopped, StopRequest, end_with_launcher, failure_line
from grpo.startup.ranks import launched_rank
from rewards.scoring.loading import find_place, is_builtin

if TYPE_CHECKING:
    from accelerate import Accelerator

    from grpo.loop import Loop


def main(argv: Sequence[str]) -> None:
    if not argv:
        sys.exit(USAGE)
    if {"-h", "--help"} & set(argv):
        with while_read():
            print(__doc__, "Every setting, with its default (??? where there is none):", sep="\n", end="\n\n")
            print(*explained(), sep="\n")
        return
    say_anything()
    end_with_launcher()
    with StopRequest() as stop, ExitStack() as stack:
        try:
            rank = launched_rank(os.environ)
            config = load_config(argv)
            run_dir = RunDir(config.run_dir)
            if rank == 0:
                stack.enter_context(run_dir.locked())
            # The first of all checks: another run that is finished is not this one.
            run_dir.check_goes_on(config)
            if rank == 0:
                stop.tells(run_dir.stopped_file)
            if run_dir.is_finished(config.num_steps):
                print(f"nothing left to do: {run_dir.path}/ holds a finished run")
                return
            train(config, run_dir, rank, stop, argv)
        except (ValueError, OSError) as error:
            leave(f"error: {error}".splitlines()[0])
        except Stopped as stopped:
            stop.end(str(stopped))
            sys.exit(EXIT_CODE)


def train(config: Config, run_dir: RunDir, rank: int, stop: StopRequest, argv: Sequence[str]) -> None:
    """Prepare a run and train; a failure beyond a user's mistake at the start ends it in one line too."""
    try:
        loop = prepare(config, run_dir, rank, argv)
    except (ValueError, OSError):
        raise
    except Exception as error:
        leave(failure_line(error, run_dir, rank))
    try:
        loop.run(stop)
    except Exception as error:
        leave(failure_line(error, run_dir, rank))
    finally:
        loop.close()
    accelerator = loop.trainer.accelerator
    accelerator.print(f"done: {run_dir.path}/ (metrics.jsonl, curves.png, rollouts/, final/)")
    accelerator.end_training()


def leave(why: str) -> Never:
    """End this process with a line on the error stream, without secrets.

    Mostly all processes find the same mistake. Then one on each machine reports it, and its launcher ends the others
    meanwhile.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # The launcher's signal is to end the wait, and not to raise Stopped amid the handling of this mistake.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        time.sleep(3)
    sys.exit(without_secrets(why))


def prepare(config: Config, run_dir: RunDir, rank: int = 0, argv: Sequence[str] = ()) -> Loop:
    """Check and build all that the first step needs; raise ValueError or OSError, in one line, for a user's mistake."""
    find_model_folder(config.model.path)
    for name, spec in config.rewards.items():
        # Raises for a name that is none's.
        is_builtin(name, spec)
    # These imports are late, since torch and transformers take seconds: a wrong key is reported before them, and
    # worker processes that import this file again do without them.
    with under_way("importing torch and transformers", is_shown=rank == 0):
        from accelerate.utils import set_seed

        from grpo.learner.launching import make_accelerator, quiet_libraries, show_loading
        from grpo.startup.assembly import build_engine, build_learner
        from grpo.startup.checks import CHECKS, Start, read_data
        from grpo.startup.loop import build_loop

    quiet_libraries()
    accelerator = make_accelerator()
    with ExitStack() as opened:
        start = Start(
            config=config,
            run_dir=run_dir,
            accelerator=accelerator,
            opened=opened,
            read=read_data,
            say=say if rank == 0 else lambda _: None,
        )
        for check in CHECKS:
            with under_way(f"checking {check.key}", is_shown=rank == 0):
                check.run(start)
        with under_way("reading the ends of the media files", is_shown=rank == 0):
            start.learn_media()
        if rank == 0:
            show_loading()
        set_seed(config.seed)
        with under_way(f"loading {config.model.path}", is_shown=rank == 0):
            learner = build_learner(config, start.family, accelerator, start.loader.memory)
        with under_way(f"starting rollout.engine={config.rollout.engine}", is_shown=rank == 0):
            engine = build_engine(config, accelerator, learner.policy)
        loop = build_loop(start, learner, engine)
        if accelerator.is_main_process:
            run_dir.open(to_yaml(config, argv), manifest(config, accelerator))
            start.media.write(run_dir.media_file)
        # From here on `Loop.close` closes what was opened.
        opened.pop_all()
        return loop


def manifest(config: Config, accelerator: Accelerator) -> dict[str, object]:
    """Return the run's manifest, with the files and settings that its numbers depend on and the processes."""
    import torch

    places = [find_place(spec.fn or name, key=f"rewards.{name}")[0] for name, spec in config.rewards.items()]
    return make_manifest(
        data_files=config.data.files,
        settings={
            "model": model_fingerprint(str(find_model_folder(config.model.path))),
            "rewards": {file: fingerprint(file) for file in places if file.endswith(".py")},
            "media": asdict(config.media),
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
            # Prompts, rollouts, answers and the engine take theirs from the run's; torch's is asked for.
            "seeds": {
                "run": config.seed,
                "torch": torch.initial_seed(),
                "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
            },
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
