"""The servable model at the end of a run, `final/`, which says itself which step it is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers

from grpo.policy.adapters import is_adapter, save_adapters
from grpo.policy.model import Policy
from grpo.policy.sharding import whole
from grpo.run.disk import disk_errors, put_in_place
from grpo.run.folder import TRAINING
from grpo.run.model_inputs import ModelInputs


def save_final(
    folder: Path,
    policy: Policy,
    *,
    dtype: torch.dtype,
    step: int | None = None,
    inputs: ModelInputs | None = None,
    max_shard_size: str = "50GB",
    writes: bool = True,
) -> None:
    """Save the model with tokenizer and processor, as `from_pretrained` and vLLM load them.

    With LoRA its weights are merged, and `folder/adapter` holds the adapters alone, for peft. Where weights are
    sharded, all processes must call it, since they gather them together; one of them writes. step: the last step of
    the run whose model it is; None for a model that is no run's. inputs: how the model is asked; None: as the model is
    that it comes from.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, weight in policy.named_weights(dtype):
        if writes:
            weights[name] = weight.cpu()
    adapters = {n: whole(w) for n, w in policy.model.named_parameters() if is_adapter(n)}
    if not writes:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(partial):
        policy.family.save_model(partial, weights, max_shard_size=max_shard_size)
        _set_dtype(partial / "config.json", dtype)
        if policy.has_adapters:
            save_adapters(partial / "adapter", policy.model, adapters, policy.family.path)
        if inputs is not None:
            inputs.write(partial)
        if step is not None:
            facts = {"step": step, "base": policy.family.path, "transformers": transformers.__version__}
            (partial / TRAINING).write_text(json.dumps(facts, indent=2) + "\n")
        put_in_place(partial, folder)


def _set_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """Write the weights' precision into a config, by the names that it has there in old and new versions."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in part.keys() & {"dtype", "torch_dtype"}:
            part[name] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
