"""The command `egogrpo`, and `python -m grpo.commands`, which is the same: it finds the module of what is asked for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from grpo.run.progress import say_anything, under_way, while_read

COMMANDS = {
    "train": ("grpo.commands.train", "train"),
    "doctor": ("grpo.commands.doctor.command", "check a run before it is started; plan tokens and memory"),
    "warm": ("grpo.commands.warm", "decode a run's clips into its disk cache ahead of it"),
    "check": ("grpo.commands.check", "try a reward out: FILE.py:FN, package.module:FN, a name"),
    "annotate": ("grpo.commands.annotate", "give data without key moments those of a CLIP-like model"),
    "sweep": ("grpo.commands.sweeps.command", "an ablation: arms x seeds from one file to one table"),
    "report": (
        "grpo.commands.report",
        "runs as a web page: curves, and each completion with its frames",
    ),
    "replay": ("grpo.commands.replay.command", "score a run's stored rollouts with other rewards"),
    "evaluate": ("grpo.commands.evaluate.command", "models on a benchmark: scores, intervals, submissions"),
    "export": ("grpo.commands.export.command", "adapters merged, models averaged (WiSE-FT), model cards"),
    "codec": ("grpo.commands.codec.command", "tokens for motion and actions: codecs, models grown by them"),
    "ask": ("grpo.commands.ask", "ask a model about a video"),
    "serve": ("grpo.commands.serve", "serve a model with vLLM, as it was trained"),
}
"""What can be asked for: the module whose `main(arguments)` does it and gives the exit status, and what it is for."""

OPTIONAL = {
    **dict.fromkeys(("pandas", "scipy", "jinja2", "optuna", "submitit"), "commands"),
    "vector_quantize_pytorch": "codecs",
}
"""Packages that commands import when they need them, and the extra that each is in."""

HELP = """\
egogrpo: GRPO for video vision-language models. What one can do:

  train     egogrpo train --config_file launch/accelerate/single.yaml \\
                CONFIG.yaml ... key=value ...
            It is accelerate launch ... grpo/train.py, whose --help lists
            all settings. Typed again, it goes on. Its run_dir gets
            metrics.jsonl, curves.png, rollouts/, checkpoints/ and final/.
  try out   make demo: a small model on clips made for it, in minutes, no GPU

and beside a training run, as `egogrpo COMMAND` (its --help says more):

{commands}
To start from: configs/. For several GPUs or nodes: launch/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status, 130 if it was stopped."""
    with while_read():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    say_anything()
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        lines = (
            f"  {command:<9} {purpose}" for command, (_, purpose) in COMMANDS.items() if command != "train"
        )
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if name not in COMMANDS:
        from rewards.scoring.loading import did_you_mean

        says = f"{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}{says}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    try:
        with under_way(f"importing what egogrpo {name} needs"):
            module = import_module(COMMANDS[name][0])
        return module.main(arguments)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in OPTIONAL:
            raise
        print(
            f"error: egogrpo {name} needs {package}: pip install egogrpo[{OPTIONAL[package]}]",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"stopped: egogrpo {name}", file=sys.stderr)
        return 130


def _stop(number: int, frame: object) -> None:
    """What a scheduler or `kill` ends tidies up as on Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
