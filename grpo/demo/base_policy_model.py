"""The demo's base policy as a network: a Qwen2.5-VL in miniature, before it has learned anything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from grpo.demo.base_policy_texts import CHAT_TEMPLATE, SPECIAL_TOKENS
from grpo.policy.families.qwen2_5_vl import Qwen25VL
from grpo.policy.model import Policy

PATCH_PX, MERGE = 14, 2


def build_policy(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Policy:
    """A fresh policy of 1.1 M parameters."""
    model = build_model(tokenizer, seed=seed)
    family = Qwen25VL(
        path="",
        processor=build_processor(tokenizer),
        config=model.config,
        eos_ids=tuple(model.generation_config.eos_token_id),  # pyright: ignore[reportArgumentType]
    )
    return Policy(model, family, temperature=1.0)


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The policy's network."""
    ids = {token: _id_of(tokenizer, token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6},
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 128,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _initialise(model)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def _id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """The family's processor for small frames, every switch that would otherwise warn set."""
    unit_px = (PATCH_PX * MERGE) ** 2
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=unit_px, max_pixels=16 * unit_px),
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": unit_px, "longest_edge": 64 * unit_px},
            do_sample_frames=False,
            cap_pixels_per_frame=False,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


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
