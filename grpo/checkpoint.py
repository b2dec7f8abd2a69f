"""Checkpoints that are whole or not there, and the servable model at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from grpo.policy import Policy


def save(folder: Path, step: int, accelerator: Accelerator, *, keep: int) -> None:
    """Weights, optimizer and random states as `folder/step_N`, written beside it and renamed at the end."""
    partial, finished = folder / f".partial_{step:06d}", folder / f"step_{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
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
    """Steps of the finished checkpoints, ascending."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


def save_final(folder: Path, policy: Policy, *, dtype: torch.dtype) -> None:
    """The model with tokenizer and processor, as `from_pretrained` and vLLM load them."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    cast: dict[int, torch.Tensor] = {}  # tied weights stay one tensor, or both would be written
    weights = {
        name: cast.setdefault(weight.data_ptr(), weight.to(dtype))
        for name, weight in policy.model.state_dict().items()
    }
    policy.model.save_pretrained(partial, state_dict=weights)
    policy.family.processor.save_pretrained(partial)
    _set_dtype(partial / "config.json", dtype)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _set_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """Say in a saved config what its weights are: transformers writes what the live model trains in."""
    config = json.loads(config_file.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2) + "\n")
