"""The settings under which vLLM samples what the learner can train on, in this process or in a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo.groups import MAX_MEDIA
from grpo.rollout import Sampling

if TYPE_CHECKING:
    from grpo.policy.families import ModelFamily

CODE_RULES = "grpo.rollout.vllm_codes:CodeRules"
"""The class that vLLM loads for a model with codes, so that it samples none in a wrong place."""


def engine_arguments(max_model_tokens: int, *, on_gpu: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments, by the names that they have in Python."""
    arguments: dict[str, Any] = {
        "max_model_len": max_model_tokens,
        "limit_mm_per_prompt": {"video": MAX_MEDIA, "image": MAX_MEDIA},
        "logprobs_mode": "processed_logprobs",
        "mm_processor_kwargs": {"do_resize": False, "cap_pixels_per_frame": False},
    }
    if on_gpu:
        return arguments
    # A seeded request whose prompt is prefilled in parts dies on CPU ("CPU Generator does not use offset").
    # vLLM calls whole prefills unofficial; sampler/gap_max shows at every step that they are right.
    return arguments | {
        "enforce_eager": True,
        "max_num_seqs": 256,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(16384, max_model_tokens),
    }


def sampling_fields(family: ModelFamily, sampling: Sampling, seed: int) -> dict[str, Any]:
    """Return the fields of vLLM's `SamplingParams` for a group, in plain values."""
    # Late: `egogrpo serve` reads its arguments without torch.
    from grpo.policy.model import SUPPRESSED_BIAS

    structured = {"structured_outputs": {"regex": sampling.regex}} if sampling.regex else {}
    return structured | {
        "n": sampling.group_size,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
        "logprobs": 0,
        "stop_token_ids": list(family.eos_ids),
        "logit_bias": {token: SUPPRESSED_BIAS for token in family.suppressed_ids},
        "skip_special_tokens": False,
        "stop": list(sampling.stop),
    }
