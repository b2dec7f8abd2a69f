"""Random models in miniature of the families that the shipped policy is not of, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

PROCESSORS: dict[str, Any] = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
}
TEXT = {
    "vocab_size": 448,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
OWN_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6},
    },
    "qwen3_vl": {
        # As in the 4B, all heads together are wider than the hidden size.
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
            "rope_theta": 1e6,
        },
    },
}
VISION = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
OWN_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2, "patch_size": 14},
    "qwen3_vl": {
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 128,
        "patch_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    },
}


def write_model(folder: Path, family: str, *, tokenizer_path: Path, tied: bool) -> None:
    """Write a model folder as `from_pretrained` and vLLM load it. tied: the output head is the embedding."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    ids: Any = tokenizer.convert_tokens_to_ids
    config = AutoConfig.for_model(
        family,
        text_config=TEXT
        | OWN_TEXT[family]
        | {"tie_word_embeddings": tied, "pad_token_id": ids("<|endoftext|>")},
        vision_config=VISION | OWN_VISION[family],
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    model = random_model(config, end_id=ids("<|im_end|>"))
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    folder.mkdir()
    # transformers' own saving leaves this to one process, where each of several needs a folder.
    save_file(dict(model.named_parameters()), folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    make_processor(family, tokenizer, config.vision_config).save_pretrained(folder)


def random_model(config: Any, *, end_id: int) -> Any:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                # The library's 0.02 is meant for widths of thousands.
                weight.normal_(0.0, weight[0].numel() ** -0.5)
        # So that some completions end early.
        model.lm_head.weight[end_id] *= 2.5
    return model


def make_processor(family: str, tokenizer: Any, vision: Any) -> Any:
    """The family's processor for small frames, every switch that would otherwise warn set."""
    unit_px = (vision.patch_size * vision.spatial_merge_size) ** 2
    processor_class, video_processor_class = PROCESSORS[family]
    return processor_class(
        image_processor=Qwen2VLImageProcessor(
            patch_size=vision.patch_size, min_pixels=unit_px, max_pixels=16 * unit_px
        ),
        video_processor=video_processor_class(
            size={"shortest_edge": unit_px, "longest_edge": 64 * unit_px},
            do_sample_frames=False,
            cap_pixels_per_frame=False,
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
