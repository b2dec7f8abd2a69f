"""Rows that several processes compute together, against one process: log-probs, gradients, figures and weights.

    python -m tests.learner.splits

tries every case on two and on four processes, in one team and in two, under DDP, ZeRO and FSDP2, and prints how far off
they are; then whole runs of two steps, whose metrics have to be those of one process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from grpo.demo.clips import write_dataset
from grpo.run.folder import read_rows
from tests.support import tiny
from tests.support.launched import run_two
from tests.support.runs import SMALL, close, data, repeatable, reset_process_state, run
from tests.support.sharded_worker import family_of
from tests.support.split_worker import CASES, found

MATRIX = [
    *(("multi_gpu", case, 2, 2) for case in CASES),
    *(("multi_gpu", case, 4, 4) for case in CASES),
    *(("multi_gpu", case, 4, 2) for case in ("full", "lora", "full of qwen3_vl")),
    *(
        (kind, case, 2, 2)
        for kind in ("zero2", "zero3", "fsdp2")
        for case in ("checkpointed", "frozen tower")
    ),
    *((kind, "lora", 4, 2) for kind in ("zero3", "fsdp2")),
]
"""The launch, the case, the number of processes, and of those that share a row."""

SAME = ("loss", "optim/grad_norm", "policy/kl", "policy/entropy", "policy/clip_fraction", "sampler/gap_max")


@cache
def in_one_process(case: str) -> dict[str, Any]:
    """What one process finds."""
    reset_process_state()
    try:
        with patch.dict(os.environ, ACCELERATE_USE_CPU="true"), tiny.of_family(family_of(case)):
            return found(case, 1)
    finally:
        reset_process_state()


def in_several(kind: str, case: str, processes: int, size: int, folder: Path) -> dict[str, Any]:
    """What so many processes find, of which so many share each row."""
    out = folder / "found.pt"
    run_two(
        kind, ["-m", "tests.support.split_worker", case, str(size), str(out)], folder, processes=processes
    )
    return torch.load(out)


def differences(one: Mapping[str, Any], several: Mapping[str, Any], case: str) -> dict[str, float]:
    """How far several processes are off one: the largest difference of log-probs, and shares of lengths."""
    # The clips of the reference's passes are copies, which no later pass asks for.
    assert several["uploads"] == 0
    assert several["rows"] > 0 and several["watched"] > 0 and several["figures"]["optim/skipped_updates"] == 0
    off = {}
    for name in ("logps", "references"):
        assert several[name].keys() == one[name].keys()
        off[name] = max(
            abs(a - b) for key in one[name] for a, b in zip(several[name][key], one[name][key], strict=True)
        )
    if several["gradient"] is not None:
        off["gradient"] = float((several["gradient"] - one["gradient"]).norm() / one["gradient"].norm())
    off["figures"] = max(abs(several["figures"][name] - one["figures"][name]) for name in SAME)
    with tiny.of_family(family_of(case)):
        start = dict(tiny.policy(seed=1, **CASES[case]).named_weights())
    squares = {
        key: sum(float((weight - other[name]).square().sum()) for name, weight in one["weights"].items())
        for key, other in {"off": several["weights"], "way": start}.items()
    }
    off["weights"] = (squares["off"] / squares["way"]) ** 0.5
    return off


LIMITS = {"logps": 2e-5, "references": 2e-5, "gradient": 2e-5, "figures": 1e-4, "weights": 1e-3}
"""The largest differences that rounding in fp32 makes; Adam turns a gradient of rounding errors into a full step."""


RUNS = {
    "adapters, two iterations": [
        "loss.beta=0.04",
        "optim.num_iterations=2",
        "model.lora.r=4",
        "optim.lr=2e-3",
    ],
    "the divergence in the reward": ["loss.beta=0.04", "loss.kl_in_reward=true", "optim.tokens_per_row=600"],
}


def check_runs(folder: Path) -> None:
    """Compare runs of two processes that share rows with runs of one process."""
    clips = write_dataset(folder / "clips", num_train=12, num_heldout=4, seed=1)
    for number, (name, settings) in enumerate(RUNS.items()):
        own = [*settings, "eval.max_samples=2", "num_steps=2"]
        one = run(folder / f"one_{number}", clips, *own)
        two = folder / f"two_{number}"
        shared = [*SMALL, *data(clips), *own, f"run_dir={two}", "optim.sequence_parallel_size=2"]
        run_two("multi_gpu", ["grpo/train.py", *shared], folder)
        rows = read_rows(two / "metrics.jsonl")
        assert len(rows) == 3 and close(repeatable(rows)[1:], repeatable(one)[1:], but=("tokens/computed",))
        print(f"a run with {name}: the metrics of one process", flush=True)


def main() -> None:
    too_far: list[str] = []
    for kind, case, processes, size in MATRIX:
        with tempfile.TemporaryDirectory() as folder:
            several = in_several(kind, case, processes, size, Path(folder))
        off = differences(in_one_process(case), several, case)
        figures = " | ".join(f"{off[name]:.1e}" if name in off else "" for name in LIMITS)
        print(f"| {kind} | {case} | {processes} / {size} | {figures} |", flush=True)
        too_far += [f"{kind}, {case}" for name in off if off[name] >= LIMITS[name]]
    assert not too_far, too_far
    with tempfile.TemporaryDirectory() as folder:
        check_runs(Path(folder))


if __name__ == "__main__":
    main()
