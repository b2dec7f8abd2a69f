"""The model families: what they share is in `family.py`, and each other file is what one of them does otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from grpo.policy.families.family import ModelFamily
from grpo.policy.families.qwen2_5_vl import Qwen25VL

FAMILIES: dict[str, type[ModelFamily]] = {"qwen2_5_vl": Qwen25VL}


def load_family(model_path: str, *, seconds_dtype: torch.dtype = torch.float32) -> ModelFamily:
    """Load the family of a model folder, with its tokenizer and processor.

    seconds_dtype: as the family's field of that name. Raises ValueError if the folder or its config is
    missing, or the family is not supported.
    """
    from transformers.utils import cached_file

    config_file = Path(model_path) / "config.json"
    if not config_file.is_file():
        if Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1:
            raise ValueError(f"model.path: no model folder with a config.json at {model_path}")
        try:
            config_file = Path(str(cached_file(model_path, "config.json", local_files_only=True)))
        except OSError as error:
            raise ValueError(
                f"model.path: {model_path} is neither a folder nor in the local hub cache (hf download {model_path})"
            ) from error
    model_type = json.loads(config_file.read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model.path: {model_path} is a {model_type!r} model; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type].load(model_path, seconds_dtype=seconds_dtype)
