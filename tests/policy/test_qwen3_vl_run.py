"""A run of Qwen3-VL from its config to `final/`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support import tiny
from tests.support.runs import run, weights


@pytest.mark.slow
def test_a_run_samples_what_it_trains_and_its_final_model_is_transformers_own(
    clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    with tiny.of_family("qwen3_vl"):
        base = Path(tiny.family().path)
    rows = run(
        tmp_path / "run", clips, f"model.path={base}", "rollout.engine=vllm", "optim.lr=1e-3",
        "optim.warmup_steps=0", "media.min_pixels=4096", "media.max_pixels=4096", "rollout.max_model_tokens=512",
        "optim.tokens_per_row=2048", "rewards.brevity={weight: 1.0, args: {target_tokens: 4}}",
    )  # fmt: skip
    # Each step samples with the weights that the step before it has left.
    assert all(row["sampler/gap_max"] < 1e-3 for row in rows[1:])
    start, end = load_file(base / "model.safetensors"), weights(tmp_path / "run")
    assert start.keys() == end.keys()
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert moved == end.keys()
    folder = tmp_path / "run" / "final"
    assert (
        type(AutoModelForImageTextToText.from_pretrained(folder)).__name__
        == "Qwen3VLForConditionalGeneration"
    )
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "Qwen3VLProcessor"
