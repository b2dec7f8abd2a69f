"""The demo's base policy as a network, before it has learned anything: a Qwen2.5-VL in miniature.

Its configuration, tokenizer and processor are those of the folder `base_policy/`, in which the shipped weights lie.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.policy.families import load_family
from grpo.policy.model import Policy

SHIPPED = Path(__file__).with_name("base_policy")


def build_policy(*, seed: int) -> Policy:
    """A policy of 1.1 M parameters with fresh weights."""
    family = load_family(str(SHIPPED))
    torch.manual_seed(seed)
    # A copy, because the policy writes its choice of attention into it.
    model = Qwen2_5_VLForConditionalGeneration(deepcopy(family.config))
    _initialise(model)
    return Policy(model, family, temperature=1.0)


@torch.no_grad()
def _initialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Standard deviation 1/sqrt(fan-in), half of it into the residual stream.

    The library's 0.02 is meant for widths of thousands, and far too small for 64 and 128.
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        std = weight[0].numel() ** -0.5
        if "embed_tokens" in name:
            std = 0.06
        elif any(part in name for part in ("o_proj", "down_proj", ".attn.proj")):
            std *= 0.5
        nn.init.normal_(weight, 0.0, std)
    _look_at_previous_token(model.model.language_model)


def _look_at_previous_token(language_model: Any) -> None:
    """Start the first head of the first layer as one that attends to the token before.

    Through the biases of queries and keys alone: rotated by their positions p and p', they score
    sum_i a_i cos(f_i (p - p' - 1)), which is highest for p' = p - 1. Large models find such a head by
    themselves; reading "which letter stands before red" needs one.
    """
    attention = language_model.layers[0].self_attn
    frequencies = language_model.rotary_emb.inv_freq
    dim, half = attention.head_dim, attention.head_dim // 2
    num_sharing = attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]
    attention.q_proj.weight[:dim] *= 0.2
    attention.k_proj.weight[:dim] *= 0.2
    attention.q_proj.bias[: dim * num_sharing] = 0
    attention.k_proj.bias[:dim] = 0
    for i, share in enumerate((0.6, 0.4)):
        scale = math.sqrt(7.0 * share * math.sqrt(dim))
        angle = float(frequencies[i])
        attention.k_proj.bias[i] = scale
        attention.q_proj.bias[i] = scale * math.cos(angle)
        attention.q_proj.bias[i + half] = -scale * math.sin(angle)
