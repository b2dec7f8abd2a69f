"""The model families: what they share is in `family.py`, and each other file is what one of them does otherwise."""

from __future__ import annotations

import torch

from grpo.policy.families.family import ModelFamily
from grpo.policy.families.qwen2_5_vl import Qwen25VL
from grpo.policy.families.qwen2_vl import Qwen2VL
from grpo.policy.families.qwen3_vl import Qwen3VL
from grpo.policy.model_folder import check_processor, find_model_folder, read_json

FAMILIES: dict[str, type[ModelFamily]] = {"qwen2_vl": Qwen2VL, "qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}


def load_family(model_path: str, *, seconds_dtype: torch.dtype = torch.float32) -> ModelFamily:
    """Load the family of a model folder, with its tokenizer and processor.

    seconds_dtype: as the family's field of that name. Raises ValueError if the folder or a file in it but the
    weights is missing, or the family is not supported.
    """
    folder = find_model_folder(model_path)
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model.path: {model_path} is a {model_type!r} model; supported: {', '.join(FAMILIES)}"
        )
    check_processor(folder)
    try:
        family = FAMILIES[model_type].load(model_path, seconds_dtype=seconds_dtype)
    except (ValueError, OSError) as error:
        raise ValueError(f"model.path: {str(error).splitlines()[0]}") from error
    if not family.processor.chat_template:
        raise ValueError(f"model.path: the model has no chat template: {folder} lacks chat_template.jinja")
    return family
