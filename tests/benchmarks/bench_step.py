"""A step of the demo here against one of another checkout, in turn.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_step CHECKOUT [key=value ...] [--pairs 3] [--here key=value ...]

Prints JSON: the medians of `time/step` and of its parts in both, of all steps but the first two, and the ratio of this
one to the other. Nothing is evaluated or saved. `--here`: settings that the other one doesn't know, such as
`rollout.overlap=true rollout.engine=vllm_process`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from grpo.run.folder import read_rows
from tests.support import tiny

WARM_UP = 2


def step_times(checkout: Path, run_dir: Path, steps: int, settings: list[str]) -> list[dict[str, float]]:
    """Train the demo of a checkout; the times of its steps."""
    own = [f"run_dir={run_dir}", f"num_steps={steps}", "eval.every_steps=0", "checkpoint.every_steps=0"]
    subprocess.run(
        [sys.executable, "grpo/train.py", "configs/demo.yaml", *own, *settings],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = read_rows(run_dir / "metrics.jsonl")
    return [
        {key: value for key, value in row.items() if key.startswith("time/")}
        for row in rows
        if row["step"] > WARM_UP
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--here", nargs="*", default=[], metavar="key=value")
    args = parser.parse_args()
    checkouts = {"here": tiny.ROOT, "other": args.other.absolute()}
    times: dict[str, list[list[dict[str, float]]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(args.pairs):
            for name, checkout in checkouts.items():
                run_dir = Path(folder) / name / str(pair)
                settings = args.settings + (args.here if name == "here" else [])
                times[name].append(step_times(checkout, run_dir, args.steps, settings))
    steps_s = {
        name: [median(row["time/step"] for row in run) for run in runs] for name, runs in times.items()
    }
    result = {
        name: {
            key: round(median(row[key] for run in runs for row in run if key in row), 3)
            for key in ("time/step", "time/rollout", "time/reward", "time/update", "time/sync")
        }
        for name, runs in times.items()
    }
    ratios = [here / other for here, other in zip(steps_s["here"], steps_s["other"], strict=True)]
    print(json.dumps({**result, "here_to_other": [round(each, 3) for each in ratios]}, indent=2))


if __name__ == "__main__":
    main()
