"""A random Qwen3-VL in miniature, with the tokenizer of the shipped policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

PATCH_PX, MERGE = 16, 2


def write_qwen3_vl(folder: Path, *, tokenizer_path: Path, tied: bool) -> None:
    """Write a model folder as `from_pretrained` and vLLM load it. tied: the head is the embedding, as below 8B."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    model = _model(tokenizer, tied)
    folder.mkdir()
    # transformers' own saving leaves this to one process, where each of several needs a folder.
    save_file(dict(model.named_parameters()), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    unit_px = (PATCH_PX * MERGE) ** 2
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=PATCH_PX, min_pixels=unit_px, max_pixels=16 * unit_px
        ),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": unit_px, "longest_edge": 64 * unit_px},
            do_sample_frames=False,
            cap_pixels_per_frame=False,
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def _model(tokenizer: PreTrainedTokenizerFast, tied: bool) -> Qwen3VLForConditionalGeneration:
    ids: Any = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # As in the 4B, more than the hidden size for all heads together.
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
            "rope_theta": 1e6,
        },
        "pad_token_id": ids("<|endoftext|>"),
        "tie_word_embeddings": tied,
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 128,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        architectures=["Qwen3VLForConditionalGeneration"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                # The library's 0.02 is meant for widths of thousands.
                weight.normal_(0.0, weight[0].numel() ** -0.5)
        # So that some completions end early.
        model.lm_head.weight[ids("<|im_end|>")] *= 2.5
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    return model
