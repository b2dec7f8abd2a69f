"""A model's folder, and whether it is whole: a download can stop, and git can leave pointers in the place of files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from grpo.codec.vocabulary import CODECS_FOLDER
from grpo.media.identity import whole_digest

LFS_POINTER = b"version https://git-lfs"
WEIGHTS = "model.safetensors"
NEEDED = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}
"""What there has to be beside the weights, with the files that it may be in."""

INPUTS = "inputs.json"
"""The file of a saved model that says how it is asked (`run/model_inputs.py`)."""

DESCRIPTION = re.compile(
    r"(codes|config|generation_config|inputs|tokenizer.*|vocab|merges|special_tokens_map|added_tokens|chat_template|.*processor_config)"
    r"\.(json|jinja|txt|model)|LICENSE.*"
)
"""The names of what a model folder holds beside weights and notes."""


def find_model_folder(model_path: str, key: str = "model.path") -> Path:
    """The folder of a model with its config, which may be given by its name in the local hub cache; else ValueError.

    key: the setting that the error names.
    """
    folder = Path(model_path)
    return folder if (folder / "config.json").is_file() else _in_hub_cache(model_path, key)


def copy_description(folder: Path, to: Path) -> None:
    """Put a model folder's files beside its weights into another one, in the place of what is there."""
    for file in to.iterdir():
        if DESCRIPTION.fullmatch(file.name):
            file.unlink()
    for file in folder.iterdir():
        if DESCRIPTION.fullmatch(file.name):
            shutil.copyfile(file, to / file.name)
    if (codecs := folder / CODECS_FOLDER).is_dir():
        shutil.copytree(codecs, to / CODECS_FOLDER, dirs_exist_ok=True)


def check_processor(folder: Path) -> None:
    """Raise ValueError that names the file if one of those beside the weights is missing or not whole."""
    for file in folder.glob("*.json"):
        read_json(file)
    for what, names in NEEDED.items():
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"model.path: the model has no {what}: {folder} lacks {' or '.join(names)}")


def check_weights(folder: Path) -> None:
    """Raise ValueError that names the file if weights are missing, cut off, or pointers to what git has left out."""
    if not any(folder.glob("*.safetensors*")) and (pickles := sorted(folder.glob("*.bin"))):
        raise ValueError(
            f"model.path: {pickles[0]} is a pickle, which may run code when it is read: save the model as safetensors "
            "(`from_pretrained` and `save_pretrained` in an environment that you can lose)"
        )
    for file in weight_files(folder):
        if not file.is_file():
            raise ValueError(f"model.path: {file} is missing")
        _check_no_pointer(file)
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"model.path: {file} is damaged or cut off: {error}") from error


def weights_identity(folder: Path) -> dict[str, str]:
    """Return what tells a model's weights from others: the size of each file, and a digest of all of it.

    A file's ends are no help: its header and the frozen vision tower, the last by name, outlive a training.
    """
    files = [file for file in weight_files(folder) if file.is_file()]
    with ThreadPoolExecutor() as pool:
        return dict(zip([file.name for file in files], pool.map(_size_and_digest, files), strict=True))


def _size_and_digest(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {whole_digest(str(file), stat.st_mtime_ns, stat.st_size)}"


def weight_files(folder: Path) -> Iterator[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        yield folder / WEIGHTS
        return
    names = read_json(index)["weight_map"].values()
    yield from (folder / name for name in sorted(set(names)))


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file of a model's folder says; ValueError that names the file if it can't be read."""
    _check_no_pointer(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path: {file} is damaged or cut off: {error}") from error


def _check_no_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"model.path: {file} is a pointer of git-lfs: git lfs pull gets the file")


def _in_hub_cache(model_path: str, key: str) -> Path:
    if (Path(model_path) / "final" / "config.json").is_file():
        raise ValueError(f"{key}: {model_path} is a run's folder; its model is {Path(model_path) / 'final'}")
    run = Path(model_path).parent if Path(model_path).name == "final" else Path(model_path)
    if (run / "config.yaml").is_file():
        raise ValueError(
            f"{key}: the run in {run} has not finished, so there is no {run / 'final'} yet: type its command again, "
            "with the step of its last checkpoint as num_steps to end it there"
        )
    from transformers.utils import cached_file

    if Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1:
        raise ValueError(f"{key}: no model folder with a config.json at {model_path}")
    try:
        return Path(str(cached_file(model_path, "config.json", local_files_only=True))).parent
    except OSError as error:
        raise ValueError(
            f"{key}: {model_path} is neither a folder nor in the local hub cache (hf download {model_path})"
        ) from error
