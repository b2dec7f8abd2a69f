"""Models that are saved for others."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from grpo.run import checkpoint
from tests.support import tiny


def test_the_final_model_is_whole_and_says_its_dtype(tmp_path: Path) -> None:
    policy = tiny.policy(seed=4)
    checkpoint.save_final(tmp_path / "final", policy, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "final" / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "final" / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied: stored once
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "final", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16()), name
    assert AutoProcessor.from_pretrained(tmp_path / "final").video_token == "<|video_pad|>"
    assert not list(tmp_path.glob(".*"))  # nothing half-written beside it
    modes = {file.stat().st_mode for file in (tmp_path / "final").iterdir()}
    assert len(modes) == 1  # who reads the config reads the weights


def test_only_finished_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step_000002", "step_000010", ".partial_000012"):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [2, 10]
    assert checkpoint.steps(tmp_path / "none") == []
