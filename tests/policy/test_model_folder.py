"""A model's folder that is not whole is one line that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo.media.identity import whole_digest
from grpo.policy.families import load_family
from grpo.policy.model_folder import check_weights, find_model_folder, weights_identity
from tests.support import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4421360\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(tiny.BASE_POLICY, tmp_path / "model")


def test_a_whole_folder_is_found(folder: Path) -> None:
    assert find_model_folder(str(folder)) == folder
    check_weights(folder)


def test_weights_that_git_has_left_out_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(
        ValueError, match=r"^model.path: .*model/model.safetensors is a pointer of git-lfs: .*pull"
    ):
        check_weights(folder)


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_named(size: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="model.safetensors is damaged or cut off: "):
        check_weights(folder)


def test_every_part_of_the_weights_has_to_be_there(folder: Path) -> None:
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors").rename(folder / parts["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(ValueError, match="model-2-of-2.safetensors is missing"):
        check_weights(folder)
    shutil.copy(folder / parts["a"], folder / parts["b"])
    check_weights(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.json", "the model has no tokenizer: .*model lacks tokenizer.json or vocab.json"),
        ("processor_config.json", "the model has no processor: .*model lacks preprocessor_config.json or "),
        ("chat_template.jinja", "the model has no chat template: .*model lacks chat_template.jinja"),
        ("config.json", "no model folder with a config.json at .*model"),
    ],
)
def test_a_file_that_is_missing_is_named(file: str, message: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"^model.path: {message}") as caught:
        load_family(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [POINTER, '{"cut": ['])
def test_a_small_file_that_is_none_is_named(text: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"model.path: .*model/tokenizer.json is (a pointer|damaged or cut off)"
    ):
        load_family(str(folder))


def test_weights_that_differ_in_their_middle_alone_are_told_apart(tmp_path: Path):
    size = 100_000
    tensors = {name: np.zeros(size, np.float32) for name in ("embed", "q_proj", "visual")}
    save_file(tensors, tmp_path / "model.safetensors")
    before = weights_identity(tmp_path)
    assert before == weights_identity(tmp_path) and [*before] == ["model.safetensors"]
    whole_digest.cache_clear()  # the two may be saved within a tick of the file system's clock
    save_file(tensors | {"q_proj": np.ones(size, np.float32)}, tmp_path / "model.safetensors")
    assert weights_identity(tmp_path) != before


def test_a_run_s_folder_is_told_from_its_model(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "final")
    with pytest.raises(ValueError, match=f"{tmp_path} is a run's folder; its model is {tmp_path}/final$"):
        load_family(str(tmp_path))


def test_the_folder_of_a_run_that_is_not_finished_says_how_to_end_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "final"):
        with pytest.raises(ValueError, match=r"model\.path: the run in .*/run has not finished, .*num_steps"):
            find_model_folder(str(path))
