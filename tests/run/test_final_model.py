"""Models that are saved for others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.run.final_model import save_final
from grpo.run.folder import RunDir
from tests.support import tiny


def test_the_final_model_is_whole_and_says_its_dtype(tmp_path: Path) -> None:
    policy = tiny.policy(seed=4)
    save_final(tmp_path / "final", policy, dtype=torch.bfloat16, step=6)
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
    run = RunDir(tmp_path)
    assert run.final_step == 6 and run.is_finished(6) and not run.is_finished(12)


def test_the_final_model_is_described_as_its_base_is(tmp_path: Path) -> None:
    """Whatever loads the base, as an older transformers does, loads what was trained from it."""
    base = shutil.copytree(tiny.BASE_POLICY, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    # As older versions call it.
    config["torch_dtype"] = config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    (base / "LICENSE").write_text("free")
    (base / "README.md").write_text("a base model")
    family = load_family(str(base))
    policy = Policy(family.load_model(torch.float32), family, temperature=1.0)
    save_final(tmp_path / "final", policy, dtype=torch.bfloat16, step=1)
    final = tmp_path / "final"
    assert json.loads((final / "config.json").read_text()) == config | {"torch_dtype": "bfloat16"}
    same = {file.name for file in base.iterdir()} - {"config.json", "model.safetensors", "README.md"}
    assert {file.name for file in final.iterdir()} == same | {
        "config.json",
        "model.safetensors",
        "training.json",
    }
    for name in same:
        assert (final / name).read_bytes() == (base / name).read_bytes(), name
    half = (base / "model.safetensors").stat().st_size / 2
    assert (final / "model.safetensors").stat().st_size < 1.01 * half
