"""Whether a sampled run is still the run that it was: `python -m tests.golden.compare_sampled REV [key=value ...]`.

A short demo with the transformers engine, once with the code of a git revision (in a worktree of its own, which is
removed again) and once with the code as it lies here, changes included. On one machine both give the same numbers to
the last digit, times and what was decoded aside, or something else is computed now. The stored rollouts of the golden
trace can't say that for what samples them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.golden import product
from tests.golden.product import ROOT, Stored

SHORT = [
    "rollout.engine=transformers",
    "num_steps=4",
    "optim.prompts_per_step=4",
    "eval.every_steps=2",
    "checkpoint.every_steps=0",
    "media.num_workers=1",
    "rewards_workers.max_workers=2",
]
"""What the run sets beside the tree's own configs/demo.yaml."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="of git: main, HEAD~1, ...")
    parser.add_argument("overrides", nargs="*", help="key=value, for both runs")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [*SHORT, *product.demo_data(folder / "clips"), *args.overrides]
        with worktree(args.revision, folder / "before") as tree:
            before = sampled_run(tree, folder / "runs_before", settings)
        now = sampled_run(ROOT, folder / "runs_now", settings)
    if lines := changes(before, now):
        sys.exit("\n".join([f"{len(lines)} figures are not those of {args.revision}:", *lines]))
    print(f"{len(now)} rows of metrics, all as those of {args.revision}")


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """The files of a revision in a folder, until the end of the block."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def sampled_run(tree: Path, runs: Path, settings: Sequence[str]) -> list[Stored]:
    """The rows of a demo's metrics with a tree's code and configs/demo.yaml, as far as they repeat.

    runs: a folder of the run's own, or it would find the other run's decoded clips.
    """
    command = [sys.executable, "grpo/train.py", "configs/demo.yaml", f"run_dir={runs}/run", *settings]
    # Before an installation of another tree, and on one thread: several add up in any order.
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run in {tree} failed: {done.stderr[-3000:]}")
    return product.metrics(runs / "run")


def changes(before: Sequence[Stored], now: Sequence[Stored]) -> list[str]:
    """A line for each figure that is another one by as little as its last digit, and for a step that one run lacks."""
    if (steps := [row["step"] for row in now]) != (others := [row["step"] for row in before]):
        return [f"steps {steps}, before {others}"]
    return [
        f"step {row['step']}, {key}: {row.get(key)}, before {old.get(key)}"
        for old, row in zip(before, now, strict=True)
        for key in sorted({*old, *row})
        if old.get(key) != row.get(key)
    ]


if __name__ == "__main__":
    main()
