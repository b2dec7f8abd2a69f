"""The demo's base policies as networks, before they have learned anything: a Qwen2.5-VL and a Qwen3-VL in miniature.

Configuration, tokenizer and processor are those of the folder in which the shipped weights lie.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpo.policy.families import load_family
from grpo.policy.model import Policy

SHIPPED = {
    "qwen2_5_vl": Path(__file__).with_name("base_policy"),
    "qwen3_vl": Path(__file__).with_name("base_policy_qwen3_vl"),
}
"""The folder of each family's base policy."""

SHARED = 0.3
"""What all embeddings have in their first dimension where queries and keys have no biases, which it then stands for."""


def build_policy(family_name: str, *, seed: int) -> Policy:
    """A policy of 1.1 to 1.4 M parameters with fresh weights."""
    family = load_family(str(SHIPPED[family_name]))
    torch.manual_seed(seed)
    # A copy, because the policy writes its choice of attention into it.
    model = family.model_class(deepcopy(family.config))
    _initialise(model)
    return Policy(model, family, temperature=1.0)


@torch.no_grad()
def _initialise(model: Any) -> None:
    """Standard deviation 1/sqrt(fan-in), half of it into the residual stream.

    The library's 0.02 is meant for widths of thousands, and far too small for 64 and 128.
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        std = weight[0].numel() ** -0.5
        if "embed_tokens" in name:
            std = 0.06
        elif any(part in name for part in ("o_proj", "down_proj", ".attn.proj", ".mlp.linear_fc2")):
            std *= 0.5
        nn.init.normal_(weight, 0.0, std)
        # What enters later layers begins as nothing.
        if "deepstack_merger_list" in name and "linear_fc2" in name:
            nn.init.zeros_(weight)
    _look_at_previous_token(model.model.language_model)


def _look_at_previous_token(language_model: Any) -> None:
    """Start the first head of the first layer as one that attends to the token before.

    Through the biases of queries and keys alone, or what stands for them: rotated by their positions p and p',
    they score sum_i a_i cos(f_i (p - p' - 1)), which is highest for p' = p - 1. Large models find such a head by
    themselves; reading "which letter stands before red" needs one.
    """
    attention = language_model.layers[0].self_attn
    frequencies = language_model.rotary_emb.inv_freq
    dim, half = attention.head_dim, attention.head_dim // 2
    num_sharing = attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]
    attention.q_proj.weight[:dim] *= 0.2
    attention.k_proj.weight[:dim] *= 0.2
    if attention.q_proj.bias is None:
        language_model.embed_tokens.weight[:, 0] = SHARED
    query_bias, key_bias = _bias(attention.q_proj), _bias(attention.k_proj)
    query_bias[: dim * num_sharing] = 0
    key_bias[:dim] = 0
    for i, share in enumerate((0.6, 0.4)):
        scale = math.sqrt(7.0 * share * math.sqrt(dim))
        angle = float(frequencies[i])
        key_bias[i] = scale
        query_bias[i] = scale * math.cos(angle)
        query_bias[i + half] = -scale * math.sin(angle)


def _bias(projection: nn.Linear) -> Tensor:
    """What a projection adds for every token: its bias, or its weights for the dimension that all embeddings share."""
    return projection.weight[:, 0] if projection.bias is None else projection.bias
