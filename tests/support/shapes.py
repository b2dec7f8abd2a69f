"""Families in the shape of published models, without weights, as the models' configs state it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from grpo.policy.families import ModelFamily
from tests.support import tiny

TOWER_2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
             "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
TOWER_3 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
           "deepstack_visual_indexes": [5, 11, 17]}  # fmt: skip

SHAPES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        True,
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2, "vocab_size": 151_936},
        TOWER_2_5 | {"out_hidden_size": 2048},
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        False,
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152_064},
        TOWER_2_5 | {"out_hidden_size": 3584},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        True,
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
        TOWER_3 | {"out_hidden_size": 2560},
    ),
}  # fmt: skip
"""By the model's name: the family, whether the head is the embedding, and the sizes of language model and tower."""


LIMITS = {"qwen2_5_vl": (12_845_056, 128_000), "qwen3_vl": (16_777_216, 262_144)}
"""The most pixels of a picture, and of tokens, by the families' published processors and configs."""


def family_of(name: str) -> ModelFamily:
    """The family in the shape of a model, with the tiny model's processor, but for its largest picture."""
    kind, is_tied, text_sizes, vision_sizes = SHAPES[name]
    with tiny.of_family(kind):
        family = tiny.family()
    config: Any = family.config.__class__.from_dict(family.config.to_dict())
    text, vision = config.text_config, config.vision_config
    for part, sizes in ((text, text_sizes), (vision, vision_sizes)):
        for key, value in sizes.items():
            setattr(part, key, value)
    if kind == "qwen2_5_vl":
        text.layer_types = ["full_attention"] * text.num_hidden_layers
        text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config.tie_word_embeddings = text.tie_word_embeddings = is_tied
    processor = copy.copy(family.processor)
    processor.image_processor = copy.deepcopy(processor.image_processor)
    processor.image_processor.size.longest_edge, text.max_position_embeddings = LIMITS[kind]
    return replace(family, config=config, processor=processor)


def family_3b() -> ModelFamily:
    return family_of("Qwen/Qwen2.5-VL-3B-Instruct")
