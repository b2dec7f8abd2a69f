"""The check of the rollout engine before a model is loaded: whether it is there, and can run this model so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from grpo.config.schema import Config
from grpo.learner.launching import on_gpu
from grpo.policy.families import ModelFamily
from grpo.rollout.vllm_arguments import MAX_LORA_RANK
from grpo.startup.assembly import adds_adapters
from grpo.startup.servers import check_process_gpus, check_servers

ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""The variable that has vLLM take more tokens than a model's config states."""


def check_engine(config: Config, family: ModelFamily, num_processes: int) -> None:
    """Raise ValueError unless the rollout engine is installed and can run this model."""
    engine = config.rollout.engine
    if engine in ("vllm", "vllm_process") and find_spec("vllm") is None:
        raise ValueError(f"rollout.engine={engine}: vllm is not installed; try rollout.engine=transformers")
    if engine == "vllm_server":
        check_servers(config, family)
    if engine == "transformers" and family.has_sliding_windows:
        raise ValueError("rollout.engine=transformers: not for a model with sliding windows; use vllm")
    if adds_adapters(config) and (rank := config.model.lora.r) > MAX_LORA_RANK:
        raise ValueError(
            f"rollout.lora=adapters: vLLM has room for ranks up to {MAX_LORA_RANK}, not for {rank}"
        )
    if engine in ("vllm", "vllm_process"):
        check_length(family, config.rollout.max_model_tokens, os.environ)
    # The processes of an engine are next to each other, on one machine.
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or num_processes)
    if engine == "vllm_process":
        if on_gpu():
            gpus, visible = config.rollout.process_gpus, os.environ.get("CUDA_VISIBLE_DEVICES")
            check_process_gpus(gpus, visible, num_learners=local)
        if local < num_processes:
            raise ValueError("rollout.engine=vllm_process is on one machine; use vllm_server for several")
    if local % (shared_by := config.rollout.tensor_parallel_size):
        raise ValueError(
            f"rollout.tensor_parallel_size={shared_by} does not divide the {local} processes of a machine"
        )


def check_length(family: ModelFamily, max_model_tokens: int, environment: Mapping[str, str]) -> None:
    """Raise ValueError for more tokens than the model's own length, unless vLLM is told to take them.

    The length and the words are those of `vllm/config/model.py`, `_get_and_verify_max_len`, and of `vllm/envs.py`.
    """
    text = family.config.text_config
    rope = getattr(text, "rope_parameters", None) or {}
    # A length that YaRN and the like have stretched is in the config already.
    stretched = rope.get("factor") or 1.0 if rope.get("rope_type") in ("linear", "dynamic") else 1.0
    own = int(text.max_position_embeddings * stretched)
    if max_model_tokens > own and environment.get(ALLOW_LONG, "0").strip().lower() not in ("1", "true"):
        raise ValueError(
            f"rollout.max_model_tokens={max_model_tokens} is more than the model's own length of {own}: lower it, or "
            f"set {ALLOW_LONG}=1 if the positions of its prompts stay below that (docs/scaling.md)"
        )
