"""LoRA adapters, through peft: put into a model, switched off, merged for the engines, stored.

The model keeps its class, with peft's layers in the place of the adapted ones, so that nothing else has to know of
them. Merging makes new tensors: the model never holds merged weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from grpo.config.model import ALL_LINEAR, PARTS, LoraConfig, Part

NAME = "default"
"""The name that peft gives the only adapter of a model."""


def add_adapters(model: nn.Module, lora: LoraConfig, part_of: Callable[[str], Part]) -> None:
    """Put adapters, in fp32 and with a product of zero, into the targeted layers, and freeze everything else.

    Raises ValueError for a target that no layer's name ends with.
    """
    import peft

    settings = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=_target_modules(model, lora, part_of)
    )  # pyright: ignore[reportCallIssue]
    peft.inject_adapter_in_model(settings, model, adapter_name=NAME)
    for weight in model.parameters():
        # peft gives adapters the precision of the frozen weights.
        if weight.requires_grad:
            weight.data = weight.data.float()


def _target_modules(model: nn.Module, lora: LoraConfig, part_of: Callable[[str], Part]) -> list[str]:
    found = []
    for part in PARTS:
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head" and part_of(name) == part
        ]
        for target in getattr(lora.targets, part):
            matches = [name for name in linear if target in (ALL_LINEAR, name) or name.endswith(f".{target}")]
            if not matches:
                ends = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in linear}))
                raise ValueError(
                    f"model.lora.targets.{part}: no linear layer there is called {target!r}; there are {ends}"
                )
            found += matches
    return found


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by the name that the adapted layer has in the model; empty without adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_weights(layer: Any) -> tuple[Tensor, Tensor, float]:
    """Return a layer's A (R, I), B (O, R), as they are stored, and the factor of their product."""
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the context, where the model computes as before training."""
    layers = adapted_layers(model).values()
    # peft's enable_adapters also takes the adapters' gradient away, and FSDP2, whose first pass this may be, would
    # record for good that nothing trains.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def is_adapter(name: str) -> bool:
    """Return whether a parameter's name is that of an adapter's weight."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without adapters."""
    return name.replace(".base_layer.", ".")


@torch.no_grad()
def merged(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """Return W + alpha / r * B A as a new tensor: peft's merge, before it is rounded to the precision of W."""
    return weight_OI + (up_OR @ down_RI) * scaling


def unquantized(weight: Tensor) -> Tensor:
    """Return the values of a weight in 4 bits (bitsandbytes' `Params4bit`); any other weight as it is."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(weight.data, state)


def save_adapters(folder: Path, model: Any, weights: Mapping[str, Tensor], base_path: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(BASE, folder)` loads.

    weights: whole adapter weights by their names in the model.
    """
    folder.mkdir()
    names = {name: f"base_model.model.{name.replace(f'.{NAME}.', '.')}" for name in weights}
    stored = {names[name]: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = copy(model.peft_config[NAME])
    settings.base_model_name_or_path = os.path.abspath(base_path) if os.path.isdir(base_path) else base_path
    # The order of a set changes from run to run.
    settings.target_modules = sorted(settings.target_modules)
    settings.inference_mode = True
    settings.save_pretrained(folder)
