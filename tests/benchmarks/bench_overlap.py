"""The demo with its engine in a process of its own, with and without the next step's rollouts during the update.

    python -m tests.benchmarks.bench_overlap [--seeds 2] [--arms off,overlap]

Prints JSON, of each run: held-out scores, the medians of a step's times, and the median of a step's time over the
longer of the rollout and the update in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from grpo.run.folder import read_rows
from tests.benchmarks.bench_demo import train_demo

ARMS = {
    "off": ["rollout.engine=vllm_process"],
    "overlap": ["rollout.engine=vllm_process", "rollout.overlap=true"],
}
TIMES = ("step", "rollout", "update", "rollout_wait", "sync", "data", "reward")


def times(run_dir: Path) -> dict[str, float]:
    """The medians of the times of a run's steps, without the first three and a last one that samples nothing."""
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["step"] > 3 and "time/rollout" in row]
    over = [row["time/step"] / max(row["time/rollout"], row["time/update"]) for row in rows]
    medians = {name: median(row.get(f"time/{name}", 0.0) for row in rows) for name in TIMES}
    return {
        **{f"{name}_s": round(value, 3) for name, value in medians.items()},
        "over": round(median(over), 3),
    }


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    found = train_demo(folder, "checkpoint.every_steps=0", "eval.every_steps=50", *overrides)
    return {"held_out": found["after"], **times(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", default=",".join(ARMS), help="some of them, with commas between")
    args = parser.parse_args()
    result: dict[str, list[dict[str, Any]]] = {name: [] for name in args.arms.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        # By turns, since the machine is not always equally busy.
        for seed in range(args.seeds):
            for name in result:
                result[name].append(run(Path(folder) / name / str(seed), f"seed={seed}", *ARMS[name]))
                print(name, seed, result[name][-1], flush=True, file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
