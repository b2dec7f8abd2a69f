"""Interpolated model folders, against numpy on the stored weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.commands.export import interpolate, main
from grpo.run.final_model import save_final
from tests.support import tiny


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "final"
    save_final(folder, tiny.policy(seed=4), dtype=torch.bfloat16)
    return folder


@pytest.mark.slow
def test_the_command_writes_the_weighted_mean_of_the_two_models(tuned: Path, tmp_path: Path) -> None:
    arguments = ["interpolate", str(tiny.BASE_POLICY), str(tuned), "--alpha", "0.25"]
    command = [sys.executable, "-m", "grpo.commands", "export", *arguments, "--out", str(tmp_path / "mixed")]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    base, end = load_file(tiny.BASE_POLICY / "model.safetensors"), load_file(tuned / "model.safetensors")
    mixed = load_file(tmp_path / "mixed" / "model.safetensors")
    assert mixed.keys() == end.keys()
    for name, weight in mixed.items():
        expected = 0.25 * end[name].float().numpy() + 0.75 * base[name].float().numpy()
        assert weight.dtype == torch.bfloat16
        # one rounding to bf16's 8 bits
        np.testing.assert_allclose(weight.float().numpy(), expected, rtol=2**-8, atol=1e-7, err_msg=name)
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_two_models(tuned: Path, tmp_path: Path, alpha: float) -> None:
    interpolate(str(tiny.BASE_POLICY), str(tuned), alpha=alpha, out=tmp_path / "mixed")
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "mixed", dtype="auto")
    source = [tiny.BASE_POLICY, tuned][int(alpha)]
    expected = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    for name, weight in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_what_is_wrong_is_said_in_one_line(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny.BASE_POLICY)
    with pytest.raises(ValueError, match="--alpha must lie in"):
        interpolate(base, str(tuned), alpha=1.5, out=tmp_path / "mixed")
    with pytest.raises(ValueError, match="there is something at"):
        interpolate(base, str(tuned), alpha=0.5, out=tuned)
    out = str(tmp_path / "mixed")
    assert main(["interpolate", base, str(tmp_path / "none"), "--alpha", "0.5", "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no model folder" in error and error.count("\n") == 1
    assert not (tmp_path / "mixed").exists()


def test_models_of_another_shape_are_refused(tuned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model: Any = tiny.family().load_model(torch.float32)
    text: Any = model.config.text_config
    del model.model.language_model.layers[-1]
    text.num_hidden_layers, text.layer_types = text.num_hidden_layers - 1, text.layer_types[:-1]
    model.save_pretrained(other)
    tiny.family().processor.save_pretrained(other)
    with pytest.raises(
        ValueError, match=r"not the same architecture: the two models differ in model\.language_m"
    ):
        interpolate(str(other), str(tuned), alpha=0.5, out=tmp_path / "mixed")
