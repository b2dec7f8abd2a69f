"""The search script of the page on ablations, with a stand-in for `accelerate launch`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny

SCRIPT = tiny.ROOT / "docs" / "search_with_optuna.py"
STAND_IN = f"""#!{sys.executable}
import json, sys
from pathlib import Path
from grpo.config.load import load_config
train, *arguments = sys.argv[sys.argv.index("grpo/train.py"):]
config = load_config(arguments)
score = 1 - abs(config.rewards["keyframe"].weight - 0.5)
Path(config.run_dir).mkdir()
row = json.dumps({{"step": 50, "eval/heldout/sampled/keyframe": score}})
Path(config.run_dir, "metrics.jsonl").write_text(row + "\\n")
"""


@pytest.mark.slow  # a process that imports Optuna, and one for each trial
def test_the_search_finds_better_weights_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "accelerate").write_text(STAND_IN)
    (tmp_path / "accelerate").chmod(0o755)
    (tmp_path / "configs").symlink_to(tiny.ROOT / "configs")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tiny.ROOT)}

    def search() -> str:
        command = [sys.executable, str(SCRIPT)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    first = search()
    assert len([*(tmp_path / "runs" / "search").glob("trial_*")]) == 12
    assert float(first.split("with ")[1].split(",")[0]) > 0.8
    assert search() == first
