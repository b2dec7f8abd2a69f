"""The launch on one process or many: the Accelerator, and what DeepSpeed and FSDP2 have to be told."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from grpo.config.learner import OptimConfig
from grpo.config.model import ModelConfig
from grpo.policy.sequence_split import ALONE, SequenceSplit

PATIENCE = timedelta(hours=4)
"""How long a process waits for another. The libraries' ten minutes on GPUs are less than one of them may need alone for
a checkpoint on a slow disk, or for checking the files of a large data set."""


def quiet_libraries() -> None:
    """Silence progress bars and warnings of libraries that say nothing about the run."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def show_loading() -> None:
    """Show how far the loading of weights is."""
    transformers_logging.enable_progress_bar()


def on_gpu() -> bool:
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def compute_dtype() -> torch.dtype:
    """Return the precision in which policy and engine compute: bf16 on a GPU, over fp32 weights; fp32 on a CPU."""
    return torch.bfloat16 if on_gpu() else torch.float32


def make_accelerator() -> Accelerator:
    """Return the run's Accelerator, whose passes are in `compute_dtype`."""
    stay_on_this_machine(os.environ)
    # Several processes without a GPU: accelerate gives every DeepSpeed process the rank 0 of 1 unless it is told the
    # backend, and lets all others train for themselves, each on its part of the data, unless it is told of the CPU.
    several_on_cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    backend = {"backend": "gloo"} if several_on_cpu else {}
    accelerator = Accelerator(
        cpu=several_on_cpu and not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        mixed_precision="bf16" if on_gpu() else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE, **backend),
            # Else DDP's buckets are a second copy of all gradients. No buffer changes in training, and a pass that
            # exchanges nothing can be made anew by one process alone.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    # Else transformers loads every model in pieces under ZeRO-3, whatever zero3_init_flag says: also the reference
    # and the engine's copy, which nobody would put together again.
    unset_hf_deepspeed_config()
    return accelerator


def stay_on_this_machine(environment: MutableMapping[str, str]) -> None:
    """Have processes that are all on one machine listen on its loopback alone, unless the environment says where.

    The store of torch's launcher, which listens everywhere, is not ours to set (docs/scaling.md).
    """
    if environment.get("WORLD_SIZE", "1") == environment.get("LOCAL_WORLD_SIZE"):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, "lo")


def check_launch(accelerator: Accelerator, optim: OptimConfig, model: ModelConfig) -> None:
    """Raise ValueError if this update can't run in the processes that were launched."""
    if optim.prompts_per_step % accelerator.num_processes:
        raise ValueError(
            f"optim.prompts_per_step ({optim.prompts_per_step}) must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    _check_bitsandbytes(accelerator, optim, model)
    if model.new_rows_only and accelerator.distributed_type in ("DEEPSPEED", "FSDP"):
        raise ValueError(
            f"model.new_rows_only does not go with {accelerator.distributed_type.value}, which cuts the weights across "
            "their rows: use launch/accelerate/multi_gpu.yaml"
        )
    plugin = deepspeed_plugin(accelerator)
    if plugin is not None and optim.robust.method != "none":
        # DeepSpeed gives the optimizer flat slices of all weights, which have no start and no norm of their own.
        raise ValueError(
            f"optim.robust.method={optim.robust.method} does not go with DeepSpeed, which cuts the weights across "
            "their borders: use launch/accelerate/fsdp2.yaml"
        )
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise ValueError("FSDP1 is not supported: use FSDP2 (launch/accelerate/fsdp2.yaml)")
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type != "FSDP":
        raise ValueError(
            "FSDP2 was launched, but accelerate offers it on GPUs only: use launch/accelerate/zero3.yaml"
        )


def split_over(accelerator: Accelerator, size: int) -> SequenceSplit:
    """Return the split of rows over each so many neighbouring processes; all processes must call this together."""
    if size == 1:
        return ALONE
    group, _ = dist.new_subgroups(size, timeout=PATIENCE)
    return SequenceSplit(size=size, rank=accelerator.process_index % size, group=group)


def _check_bitsandbytes(accelerator: Accelerator, optim: OptimConfig, model: ModelConfig) -> None:
    """Raise ValueError if weights or moments are to be kept in 4 or 8 bits and can't be."""
    settings = {
        "model.load_in_4bit": model.load_in_4bit,
        "optim.optimizer=adamw_8bit": optim.optimizer == "adamw_8bit",
    }
    for key in [key for key, is_set in settings.items() if is_set]:
        if find_spec("bitsandbytes") is None:
            raise ValueError(f"{key}: bitsandbytes is not installed (pip install -e .[bitsandbytes])")
        if accelerator.distributed_type in ("DEEPSPEED", "FSDP"):
            raise ValueError(
                f"{key} is not supported with {accelerator.distributed_type.value}, which takes weights and moments "
                "apart itself: use launch/accelerate/multi_gpu.yaml"
            )


def deepspeed_plugin(accelerator: Accelerator) -> Any:
    """Return DeepSpeed's settings; None if the run was launched without it."""
    return accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None


def shards_weights(accelerator: Accelerator) -> bool:
    """Return whether the weights will be split over processes (ZeRO-3, FSDP2), so that none of them holds all."""
    plugin = deepspeed_plugin(accelerator)
    return accelerator.is_fsdp2 or (plugin is not None and plugin.zero_stage == 3)


def pass_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """Return the precision that FSDP2 casts the weights to for a pass; None where they are used as they are."""
    return torch.bfloat16 if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16" else None


def set_up_sharding(accelerator: Accelerator, max_grad_norm: float) -> None:
    """Tell DeepSpeed and FSDP2 what they need before they take the model over."""
    plugin = deepspeed_plugin(accelerator)
    if plugin is not None:
        # DeepSpeed clips by its own config, and wants a batch size although it loads no data here.
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
        # The shipped files are for GPUs. On a CPU the engine samples in fp32, and so the learner computes.
        plugin.deepspeed_config["bf16"] = {"enabled": on_gpu()}
    fsdp: Any = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if fsdp is not None and pass_dtype(accelerator) is not None:
        # accelerate would sum gradients in bf16, and round to it what goes into each module and the log-probs.
        fsdp.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
