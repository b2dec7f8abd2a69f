"""Checkpoints, which are written whole or not at all, and the servable model at the end of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from grpo.policy.adapters import is_adapter, save_adapters
from grpo.policy.model import Policy
from grpo.policy.sharding import whole


def save(folder: Path, step: int, accelerator: Accelerator, *, keep: int) -> None:
    """Save weights, optimizer and random states as `folder/step_N`, under another name until they are complete."""
    partial, finished = folder / f".partial_{step:06d}", folder / f"step_{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    # The argument is for DeepSpeed alone.
    accelerator.save_state(str(partial), exclude_frozen_parameters=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(finished, ignore_errors=True)
        partial.rename(finished)
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step_{old:06d}")
    accelerator.wait_for_everyone()


def restore(folder: Path, accelerator: Accelerator) -> int:
    """Load the latest checkpoint and return its step; 0 if there is none."""
    found = steps(folder)
    if not found:
        return 0
    accelerator.load_state(str(folder / f"step_{found[-1]:06d}"))
    return found[-1]


def steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints, ascending."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


def save_final(folder: Path, policy: Policy, *, dtype: torch.dtype, writes: bool = True) -> None:
    """Save the model with tokenizer and processor, as `from_pretrained` and vLLM load them.

    With LoRA its weights are merged, and `folder/adapter` holds the adapters alone, for peft. Where weights are
    sharded, all processes must call it, since they gather them together; one of them writes.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, weight in policy.named_weights():
        if writes:
            weights[name] = weight.to("cpu", dtype)
    adapters = {n: whole(w) for n, w in policy.model.named_parameters() if is_adapter(n)}
    if not writes:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.family.save_model(partial, weights)
    _set_dtype(partial / "config.json", dtype)
    if policy.has_adapters:
        save_adapters(partial / "adapter", policy.model, adapters, policy.family.path)
    for file in partial.rglob("*.safetensors"):
        # safetensors writes files that nobody else can read.
        shutil.copymode(partial / "config.json", file)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _set_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """Write the weights' precision into a saved config, where transformers puts that of the live model."""
    config = json.loads(config_file.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2) + "\n")
