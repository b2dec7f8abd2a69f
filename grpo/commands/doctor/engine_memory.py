"""The memory that vLLM takes on a learner's GPU, worked out from shapes: `engine_parts_gib`, then `least_frac`.

The parts are those that vLLM 0.31 sets aside when it starts (`v1/worker/gpu_worker.py`, `determine_available_memory`):
what is left of `gpu_memory_utilization` behind weights and a profile run is its cache. It does not start where a
sequence of `max_model_len` has no room there (`v1/core/kv_cache_utils.py`, `_check_enough_kv_cache_memory`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from grpo.config.schema import Config
from grpo.policy.families import ModelFamily
from grpo.rollout.vllm_arguments import EngineSize, engine_arguments
from grpo.startup.assembly import engine_size

GIB = 2**30

BLOCK_TOKENS = 16
"""The tokens of a block of the cache (`CacheConfig.DEFAULT_BLOCK_SIZE`)."""
MOST_DUMMY_FRAMES = 14
"""The most frames of the video that vLLM profiles Qwen2.5-VL with (`models/qwen2_vl.py`, `_MAX_FRAMES_PER_VIDEO`); of
Qwen3-VL's there are two."""
RESIDENT_GIB = 1.0
"""CUDA graphs, kernels and workspaces, which no shape tells: an estimate. They stay while the engine sleeps."""


def engine_parts_gib(
    config: Config, family: ModelFamily, *, num_weights: int, adapter_widths: int = 0, processes: int = 1
) -> dict[str, float]:
    """Return the GiB that each part of an engine takes on a GPU, with the smallest cache that holds a whole group.

    adapter_widths: inputs and outputs of all layers that vLLM makes room for adapters in, added up.
    """
    size = engine_size(config, family, processes, torch.bfloat16)
    arguments = engine_arguments(size, on_gpu=True, launched=processes > 1, sleeps=config.rollout.sleep)
    shared_by = size.tensor_parallel_size
    batched_tokens = arguments["max_num_batched_tokens"]
    adapters = arguments.get("max_lora_rank", 0) * adapter_widths
    work = _profile_bytes(size, family, batched_tokens)
    # The inputs of a step, which the runner holds from its start (`v1/worker/gpu/mm/encoder_runner.py`).
    buffers = 2 * batched_tokens * family.config.text_config.hidden_size
    parts = {
        "weights": 2 * (num_weights / shared_by + adapters),
        "cache": cache_bytes(family, group_tokens(config), shared_by),
        "work": work,
        "buffers": buffers,
    }
    return {**{name: count / GIB for name, count in parts.items()}, "graphs and kernels": RESIDENT_GIB}


def asleep_gib(parts_gib: dict[str, float]) -> float:
    """Return what an engine keeps while it sleeps, which only weights and cache take part in
    (`gpu_worker.py`, `_maybe_get_memory_pool_context`)."""
    return parts_gib["buffers"] + parts_gib["graphs and kernels"]


def least_frac(parts_gib: dict[str, float], gpu_gib: float) -> float:
    """Return the smallest `rollout.gpu_memory_frac` of full hundredths that the parts fit in; above 1, none does."""
    return math.ceil(100 * sum(parts_gib.values()) / gpu_gib) / 100


def group_tokens(config: Config) -> int:
    """Return the tokens of a group with the longest prompt, which its completions share in the cache."""
    rollout = config.rollout
    return rollout.max_prompt_tokens + rollout.group_size * rollout.max_new_tokens


def cache_bytes(family: ModelFamily, num_tokens: int, shared_by: int) -> float:
    """Return the bytes of keys and values in bf16, by whole blocks, of which vLLM holds one back (`BlockPool`)."""
    text = family.config.text_config
    heads = math.ceil(text.num_key_value_heads / shared_by)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    blocks = math.ceil(num_tokens / BLOCK_TOKENS) + 1
    return 2 * 2 * text.num_hidden_layers * heads * head_size * BLOCK_TOKENS * blocks


def encoder_tokens(family: ModelFamily, max_model_tokens: int, batched_tokens: int) -> int:
    """Return the vision tokens that vLLM has room to encode at once: of a step, or of its largest item.

    That is `compute_mm_encoder_budget` (`v1/core/encoder_cache_manager.py`) with the items of
    `models/qwen2_vl.py`, `get_max_video_tokens`: as many frames of the processor's largest picture as the length holds.
    """
    picture = family.processor.image_processor.size.longest_edge // family.patches.token_px**2
    most = math.ceil(MOST_DUMMY_FRAMES / family.patches.temporal_frames)
    return max(batched_tokens, picture * min(most, max(1, max_model_tokens // picture)))


def _profile_bytes(size: EngineSize, family: ModelFamily, batched_tokens: int) -> float:
    """Return the most bytes at a time of the profile run beside what stays: of the vision tower, or of a whole step
    beside its features, or of the logits (`v1/worker/gpu/model_runner.py`, `profile_run`).
    """
    text, vision = family.config.text_config, family.config.vision_config
    shared_by, encoded = (
        size.tensor_parallel_size,
        encoder_tokens(family, size.max_model_tokens, batched_tokens),
    )
    pixels: Any = vision.in_channels * vision.patch_size**2 * family.patches.temporal_frames
    patches = encoded * family.patches.merge**2
    features = 2.0 * encoded * family.feature_width
    in_tower = 2.0 * patches * (pixels + _widths(vision, shared_by)) + features
    # What Qwen3-VL adds to its first layers (`models/qwen3_vl.py`, `deepstack_input_embeds`).
    deep_states = 2.0 * batched_tokens * (family.feature_width - text.hidden_size)
    in_step = 2.0 * batched_tokens * _widths(text, shared_by)
    # The step's states, and of each sequence: logits in bf16 and fp32, those behind all rules and temperature, their
    # log-probs, and with code tokens which of them are forbidden.
    by_logit = 2 + 3 * 4 + (family.vocabulary is not None)
    logits = 2.0 * batched_tokens * text.hidden_size + by_logit * size.max_sequences * text.vocab_size
    return deep_states + max(in_tower, features + max(in_step, logits))


def _widths(part: Any, shared_by: int) -> float:
    """Return the numbers that a layer has at once for a token or patch: in its MLP, two halves and their product beside
    input, norm and residual; in attention queries, keys and values twice, and what comes in and out."""
    return max(
        3 * part.hidden_size + 3 * part.intermediate_size / shared_by, 10 * part.hidden_size / shared_by
    )
