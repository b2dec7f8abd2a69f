"""The demo over several seeds, with and without the keyframe reward, with both engines and families.

    python -m tests.benchmarks.bench_demo [--seeds 5] [--arms vllm transformers]

Prints JSON, of each run: held-out scores before and after, and the highest of all evaluations; which share of a step
goes into waiting for rewards (the median of `time/reward` over that of `time/step`); and the seconds from start to end.
About a minute a run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from grpo.run.folder import read_rows
from tests.support import tiny

QWEN3_VL = ["model.path=grpo/demo/base_policy_qwen3_vl", "media.max_pixels=4096"]
"""Tokens of this family cover 32 x 32 pixels: its clips are 64 x 64."""

ARMS = {
    "vllm": [],
    "vllm, keyframe.weight=0": ["rewards.keyframe.weight=0"],
    "transformers": ["rollout.engine=transformers"],
    "Qwen3-VL, vllm": QWEN3_VL,
    "Qwen3-VL, transformers": [*QWEN3_VL, "rollout.engine=transformers"],
}
FIGURES = ("accuracy", "format", "keyframe", "sampled/accuracy", "sampled/format", "sampled/keyframe")


def train_demo(run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Run the demo as a user does; its held-out figures (before the first step, after the last, the highest of all
    evaluations) and its times."""
    start = perf_counter()
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    config = ["--config_file", "launch/accelerate/single.yaml", "grpo/train.py", "configs/demo.yaml"]
    subprocess.run(
        [*launch, *config, f"run_dir={run_dir}", *overrides],
        cwd=tiny.ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = read_rows(run_dir / "metrics.jsonl")
    seconds = round(perf_counter() - start, 1)
    evaluated = [row for row in rows if "eval/heldout/accuracy" in row]
    held_out = [{name: row[f"eval/heldout/{name}"] for name in FIGURES} for row in evaluated]
    reward_s, step_s = (
        median(row[key] for row in rows if key in row) for key in ("time/reward", "time/step")
    )
    return {
        "before": held_out[0],
        "after": held_out[-1],
        "highest": {name: max(each[name] for each in held_out) for name in FIGURES},
        "reward_frac_of_step": round(reward_s / step_s, 4),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    args = parser.parse_args()
    result: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.arms:
            result[name] = [
                train_demo(Path(folder) / name / str(seed), f"seed={seed}", *ARMS[name])
                for seed in range(args.seeds)
            ]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
