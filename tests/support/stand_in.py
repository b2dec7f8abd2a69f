"""Runs that end in a moment: a script in place of `accelerate launch grpo/train.py`, in real processes.

It writes what a training run leaves. What else it does, the run's `behaviour=` says.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from grpo.commands.sweeps import execute
from grpo.commands.sweeps.plan import LaunchConfig, Run
from grpo.config.load import load_config, to_yaml

SCRIPT = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
given = dict(text.split("=", 1) for text in sys.argv[1:] if "=" in text)
folder, behaviour = Path(given["run_dir"].strip(chr(34))), given.get("behaviour", given.get("model.path"))
attempts = folder / "attempts"
attempts.write_text((attempts.read_text() if attempts.exists() else "") + "x")
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
(folder / "pid").write_text(str(os.getpid()))
if behaviour == "does not listen":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def leave(*_):
    time.sleep(0.5)
    (folder / "asked").write_text("x")
    sys.exit(1)
if behaviour == "hangs":
    signal.signal(signal.SIGTERM, leave)
(folder / "started").write_text(str(time.time()))
if behaviour == "leaves a child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
if behaviour in ("hangs", "does not listen"):
    time.sleep(600)
if behaviour == "sleeps":
    time.sleep(1.0)
if behaviour == "fails" or behaviour == "fails once" and attempts.read_text() == "x":
    sys.exit("error: data.train: no such file")
if behaviour != "writes nothing":
    factor = float(given.get("rewards.format.weight", "1"))
    scores = [{"score": step * factor, "reward/mean": step * factor} for step in (0, 1, 2)]
    rows = [{"step": step, **each, "seed": int(given["seed"])} for step, each in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    (folder / "final").mkdir(exist_ok=True)
    (folder / "final" / "training.json").write_text('{"step": 2}')
(folder / "ended").write_text(str(time.time()))
"""


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs be this script from now on."""
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)

    def command_of(run: Run, launch: LaunchConfig) -> list[str]:
        if any(
            each.endswith(".yaml") for each in run.argv
        ):  # here, since the script would import for too long
            (run.folder / "config.yaml").write_text(to_yaml(load_config(run.argv)))
        return [sys.executable, str(script), *run.argv]

    monkeypatch.setattr(execute, "command_of", command_of)


def make_run(tmp_path: Path, arm: str, seed: int = 0, **given: object) -> Run:
    """A run of two steps; given: what the script is told."""
    folder = tmp_path / "out" / arm / f"seed_{seed}"
    own = [f"seed={seed}", f"run_dir={folder}", *(f"{key}={value}" for key, value in given.items())]
    return Run(arm=arm, seed=seed, folder=folder, argv=tuple(own), num_steps=2)
