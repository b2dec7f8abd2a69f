"""The arguments that vLLM is started with in this process, and the environment that it reads when it is imported."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from grpo.rollout import vllm_settings

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for; an adapter may have any up to that."""

MAX_LORA_RANK = RANKS[-1]

MAX_SEQUENCES = 1024
"""The most completions that vLLM decodes at once, its own number for large GPUs; others wait."""

LEAST_BATCHED_TOKENS = 8192
"""The tokens of one engine step on a GPU, unless a clip has more: vLLM's own number for most GPUs."""


@dataclass(frozen=True, kw_only=True)
class EngineSize:
    """What an engine makes room for, and the precision of its head."""

    max_model_tokens: int
    gpu_memory_frac: float
    max_sequences: int = 256
    """The most completions that are decoded at once: as many as a step asks for, if they fit."""
    max_clip_tokens: int = 0
    """The most vision tokens of a clip, which vLLM encodes in one piece."""
    tensor_parallel_size: int = 1
    """The number of processes that share an engine."""
    timeout_s: int | None = None
    """How long processes that share an engine wait for each other; None: torch's ten minutes on GPUs."""
    fp32_head: bool = False
    """Whether the head's products are kept in fp32."""
    lora_rank: int = 0
    """The rank of the adapters that the engine adds to its weights itself; 0: none."""
    lora_in_tower: bool = False
    """Whether the vision tower or the merger have some of them."""


def engine_arguments(size: EngineSize, *, on_gpu: bool, launched: bool, sleeps: bool) -> dict[str, Any]:
    """Return vLLM's arguments for a size. launched: there are several processes, each with an engine of its own."""
    arguments = vllm_settings.engine_arguments(size.max_model_tokens, on_gpu=on_gpu)
    batched_tokens = arguments.get("max_num_batched_tokens", LEAST_BATCHED_TOKENS)
    arguments |= {
        "max_num_seqs": size.max_sequences,
        # vLLM refuses a clip of more tokens, in the middle of a run.
        "max_num_batched_tokens": max(batched_tokens, size.max_clip_tokens, size.max_sequences),
        "use_tqdm_on_load": False,
        # It would keep copies of inputs that are made once as it is (`vllm_inputs.py`).
        "mm_processor_cache_gb": 0,
        "hf_overrides": {"head_dtype": "float32"} if size.fp32_head else {},
    }
    if on_gpu:
        arguments |= {"gpu_memory_utilization": size.gpu_memory_frac, "enable_sleep_mode": sleeps}
    if launched:
        arguments["distributed_executor_backend"] = "external_launcher"
        arguments["tensor_parallel_size"] = size.tensor_parallel_size
        arguments["distributed_timeout_seconds"] = size.timeout_s
        arguments["cpu_distributed_timeout_seconds"] = size.timeout_s
    if size.lora_rank:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": next(rank for rank in RANKS if rank >= size.lora_rank),
            "enable_tower_connector_lora": size.lora_in_tower,
        }
    return arguments


def set_environment() -> None:
    """Set the environment variables that vLLM reads when it is imported, unless they are set already."""
    # Late: `egogrpo serve` reads its arguments without it.
    import torch

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # On CPU vLLM warns, at length, of GPU features that are missing.
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Else vLLM takes the learner's threads.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
