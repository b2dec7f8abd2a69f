"""The vLLM engine as tests start it."""

from __future__ import annotations

from typing import Any

from grpo.policy.model import Policy
from grpo.rollout.vllm_arguments import EngineSize
from grpo.rollout.vllm_engine import VLLMEngine


def vllm_engine(policy: Policy, *, max_model_tokens: int = 2048, **options: Any) -> VLLMEngine:
    """A vLLM engine for a tiny policy; the other options are those of its size, but for `proof`."""
    proof = options.pop("proof", None)
    size = EngineSize(max_model_tokens=max_model_tokens, gpu_memory_frac=0.3, **options)
    return VLLMEngine(policy, seed=0, size=size, proof=proof)
