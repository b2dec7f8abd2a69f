"""The demo's base policy as a network: a Qwen2.5-VL in miniature, and how it is trained on packed texts.

Several texts about one clip share its prefix: the video is encoded and read once, and each text attends to
the prefix and to itself. Positions follow the reference mRoPE rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from grpo.demo.base_policy_texts import ASSISTANT, CHAT_TEMPLATE, SPECIAL_TOKENS, USER, VIDEO, Exchange
from grpo.demo.clips import FPS, NUM_FRAMES, SIZE_PX
from grpo.policy.attention import VISION_CHUNKS

PATCH_PX, MERGE, TEMPORAL_PATCH = 14, 2, 2
GRID_THW = (NUM_FRAMES // TEMPORAL_PATCH, SIZE_PX // PATCH_PX, SIZE_PX // PATCH_PX)
NUM_VIDEO_TOKENS = math.prod(GRID_THW) // MERGE**2
TOKENS_PER_SECOND = 2


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh network of 1.1 M parameters."""
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
        "temporal_patch_size": TEMPORAL_PATCH,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": TOKENS_PER_SECOND,
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
    model.model.visual.config._attn_implementation = (
        VISION_CHUNKS  # not saved; else a Python loop over frames
    )
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


def patches_of(clips_BFHWC: np.ndarray, processor: Qwen2_5_VLProcessor) -> Tensor:
    """uint8 clips of the demo's size -> `pixel_values_videos`, patch by patch as the processor lays them out."""
    num_clips, num_frames = clips_BFHWC.shape[:2]
    video = processor.video_processor
    scaled = torch.as_tensor(clips_BFHWC).float() / 255
    scaled = (scaled - torch.tensor(video.image_mean)) / torch.tensor(video.image_std)
    t, h, w = num_frames // TEMPORAL_PATCH, GRID_THW[1] // MERGE, GRID_THW[2] // MERGE
    split = scaled.permute(0, 1, 4, 2, 3).reshape(
        num_clips, t, TEMPORAL_PATCH, 3, h, MERGE, PATCH_PX, w, MERGE, PATCH_PX
    )
    return split.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, 3 * TEMPORAL_PATCH * PATCH_PX**2)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTexts:
    """Rows of a prefix and its texts. The last three run over all reply tokens of all rows."""

    ids_BT: Tensor
    positions_3BT: Tensor
    mask_B1TT: Tensor
    row: Tensor
    source: Tensor
    """Where in the row the token is predicted."""
    target: Tensor


class Packer:
    """Turns exchanges about clips into packed rows."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self.tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        self.video_id = _id_of(self.tokenizer, "<|video_pad|>")
        self.end_id = _id_of(self.tokenizer, "<|im_end|>")
        self.letter_ids = [self.encode(letter)[0] for letter in "ABCD"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without its end."""
        return str(self.tokenizer.decode([token for token in ids if token != self.end_id]))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prefix(self, *, video: bool) -> tuple[list[int], np.ndarray]:
        """Tokens of the user turn up to its text, and their positions (3 x T)."""
        if not video:
            ids = self.encode(USER)
            return ids, np.tile(np.arange(len(ids)), (3, 1))
        ids = self.encode(USER + VIDEO.replace("<|video_pad|>", "<|video_pad|>" * NUM_VIDEO_TOKENS))
        return ids, prompt_positions(ids, self.video_id)

    def pack(self, rows: Sequence[Sequence[Exchange]], *, video: bool = True) -> PackedTexts:
        """One row for each clip, its exchanges one behind another. Without replies: prompts to continue.

        A request that all exchanges of a row share is read once, with the clip.
        """
        prefix_ids, prefix_positions = self.prefix(video=video)
        laid_out = [self._lay_out(row, prefix_ids) for row in rows]
        num_tokens = max(len(row.ids) for row in laid_out)
        ids = np.full((len(rows), num_tokens), self.tokenizer.pad_token_id)
        offsets = np.zeros((len(rows), num_tokens), int)
        text_number = np.full((len(rows), num_tokens), -1)
        for b, row in enumerate(laid_out):
            n = len(row.ids)
            ids[b, :n], offsets[b, :n], text_number[b, :n] = row.ids, row.offsets, row.text_number
        positions = np.tile(offsets + prefix_positions.max() + 1 - len(prefix_ids), (3, 1, 1))
        positions[:, :, : len(prefix_ids)] = prefix_positions[:, None]
        row_of = [b for b, row in enumerate(laid_out) for _ in row.target]
        source = [at for row in laid_out for at in row.source]
        target = [token for row in laid_out for token in row.target]
        return PackedTexts(
            torch.tensor(ids),
            torch.tensor(positions),
            _shared_prefix_mask(torch.tensor(text_number)),
            *(torch.tensor(index, dtype=torch.long) for index in (row_of, source, target)),
        )

    def _lay_out(self, row: Sequence[Exchange], prefix_ids: Sequence[int]) -> _Row:
        prompts = [self.encode(exchange.request + ASSISTANT) for exchange in row]
        shared = prompts[0] if all(prompt == prompts[0] for prompt in prompts) else []
        laid_out = _Row([*prefix_ids, *shared])
        for number, (exchange, prompt) in enumerate(zip(row, prompts, strict=True), start=1):
            reply = [*self.encode(exchange.reply), self.end_id] if exchange.reply else []
            laid_out.add(number, [] if shared else prompt, reply)
        return laid_out


class _Row:
    """A prefix and the texts behind it; each text counts its offsets on from the prefix."""

    def __init__(self, prefix: Sequence[int]) -> None:
        self.num_prefix = len(prefix)
        self.ids = list(prefix)
        self.offsets = list(range(len(prefix)))
        self.text_number = [0] * len(prefix)
        self.source: list[int] = []
        self.target: list[int] = []

    def add(self, number: int, prompt: list[int], reply: list[int]) -> None:
        start, num_new = len(self.ids), len(prompt) + len(reply)
        self.ids += prompt + reply
        self.offsets += range(self.num_prefix, self.num_prefix + num_new)
        self.text_number += [number] * num_new
        first = start + len(prompt)
        if reply:
            self.source += [first - 1 if prompt else self.num_prefix - 1, *range(first, len(self.ids) - 1)]
            self.target += reply


def prompt_positions(ids: Sequence[int], video_id: int) -> np.ndarray:
    """mRoPE positions (3 x T) of tokens with one clip of the demo: text counts on from the largest so far."""
    start = ids.index(video_id)
    grid = np.indices((GRID_THW[0], GRID_THW[1] // MERGE, GRID_THW[2] // MERGE)).reshape(3, -1)
    grid[0] *= TOKENS_PER_SECOND * TEMPORAL_PATCH // FPS
    before = np.tile(np.arange(start), (3, 1))
    upto_video = np.concatenate([before, start + grid], axis=1)
    rest = np.tile(np.arange(len(ids) - upto_video.shape[1]), (3, 1))
    return np.concatenate([upto_video, upto_video.max() + 1 + rest], axis=1)


def _shared_prefix_mask(text_number_BT: Tensor) -> Tensor:
    """True where a token may look: back into its own text, and into text 0, the prefix."""
    num_tokens = text_number_BT.shape[1]
    own_BTT = text_number_BT[:, :, None] == text_number_BT[:, None, :]
    prefix_B1T = text_number_BT[:, None, :] == 0
    causal_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    return ((own_BTT | prefix_B1T) & causal_TT)[:, None]


def reply_logits(
    model: Qwen2_5_VLForConditionalGeneration, packed: PackedTexts, patches: Tensor | None
) -> Tensor:
    """Logits (tokens x V) at the reply tokens alone; without patches the rows are text only."""
    inputs = {"attention_mask": packed.mask_B1TT, "position_ids": packed.positions_3BT, "use_cache": False}
    if patches is None:
        embedded = model.get_input_embeddings()(packed.ids_BT)
        hidden = model.model.language_model(inputs_embeds=embedded, **inputs).last_hidden_state
    else:
        grid = torch.tensor([GRID_THW]).repeat(len(packed.ids_BT), 1)
        video = {"pixel_values_videos": patches, "video_grid_thw": grid}
        hidden = model.model(input_ids=packed.ids_BT, **video, **inputs).last_hidden_state
    return model.lm_head(hidden[packed.row, packed.source])


@torch.no_grad()
def generate(
    model: Qwen2_5_VLForConditionalGeneration,
    packer: Packer,
    clips_patches: Tensor,
    requests: Iterable[str],
    *,
    num_each: int = 1,
    generator: torch.Generator | None = None,
    max_new_tokens: int = 24,
) -> list[list[int]]:
    """Completions (token ids with their end), `num_each` for each clip; greedy without a generator.

    All requests must be equally long. Video pads are never sampled.
    """
    packed = packer.pack([[Exchange(request=request, reply="")] for request in requests])
    cache = DynamicCache(config=model.config.get_text_config())
    outputs = model.model(
        input_ids=packed.ids_BT,
        attention_mask=torch.ones_like(packed.ids_BT),
        position_ids=packed.positions_3BT,
        pixel_values_videos=clips_patches,
        video_grid_thw=torch.tensor([GRID_THW]).repeat(len(packed.ids_BT), 1),
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(num_each)
    hidden = outputs.last_hidden_state[:, -1].repeat_interleave(num_each, dim=0)
    position = int(packed.positions_3BT.max())
    columns: list[Tensor] = []
    for _ in range(max_new_tokens):
        columns.append(_next_tokens(model.lm_head(hidden).float(), packer.video_id, generator))
        position += 1
        hidden = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(columns[-1][:, None]),
            position_ids=torch.full((3, len(columns[-1]), 1), position),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    completions = torch.stack(columns, dim=1).tolist()
    return [ids[: ids.index(packer.end_id) + 1] if packer.end_id in ids else ids for ids in completions]


def _next_tokens(logits_BV: Tensor, video_id: int, generator: torch.Generator | None) -> Tensor:
    logits_BV[:, video_id] = -math.inf
    if generator is None:
        return logits_BV.argmax(-1)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
