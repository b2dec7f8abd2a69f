"""Families in the shape of published models, without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grpo.policy.families import ModelFamily
from tests.support import tiny


def family_3b() -> ModelFamily:
    """The family in the shape that Qwen2.5-VL-3B-Instruct's config states, with the tiny model's processor."""
    family = tiny.family()
    config: Any = family.config.__class__.from_dict(family.config.to_dict())
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 2048, 11008, 36
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 16, 2, 151_936
    text.layer_types = ["full_attention"] * 36
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 32, 1280, 3420, 16
    vision.out_hidden_size, vision.window_size, vision.fullatt_block_indexes = 2048, 112, [7, 15, 23, 31]
    # Its head is its embedding.
    config.tie_word_embeddings = text.tie_word_embeddings = True
    return replace(family, config=config)
