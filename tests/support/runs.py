"""Whole training runs for tests, small and in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from grpo import train
from grpo.run.folder import read_rows
from tests.support import tiny

SMALL = [
    str(tiny.ROOT / "configs" / "demo.yaml"),
    f"model.path={tiny.BASE_POLICY}",
    "rollout.engine=transformers",
    "rollout.group_size=4",
    "optim.prompts_per_step=4",
    "num_steps=4",
    "eval.every_steps=2",
    "eval.max_samples=4",
    "checkpoint.every_steps=2",
    "checkpoint.final_dtype=float32",
    "media.num_workers=1",
    "log.live=false",
]
NOT_REPEATED = ("time/", "media/")
"""Times are never the same; a resumed run decodes again what it had in memory, and finds what another has cached."""


def data(clips: Path) -> list[str]:
    return [
        f"data.train=[{{reader: jsonl, path: {clips}/train.jsonl}}]",
        f"data.eval=[{{reader: jsonl, path: {clips}/heldout.jsonl}}]",
    ]


def run(run_dir: Path, clips: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in this process; the rows of metrics.jsonl."""
    train.main([*SMALL, *data(clips), f"run_dir={run_dir}", *overrides])
    reset_process_state()
    return read_rows(run_dir / "metrics.jsonl")


def repeatable(rows: list[dict[str, Any]], but: tuple[str, ...] = NOT_REPEATED) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(but)} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final" / "model.safetensors")


def close(a: list[dict[str, Any]], b: list[dict[str, Any]], *, but: tuple[str, ...] = ()) -> bool:
    """Equal up to the rounding of sums in another order."""
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return all(
        row[key] == pytest.approx(other[key], rel=1e-3, abs=2e-5)
        for row, other in zip(a, b, strict=True)
        for key in row
        if key not in but
    )


def reset_process_state() -> None:
    """accelerate keeps its state in singletons; every run stands for a process of its own."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
