"""Attention for packed rows and for the vision tower, registered with transformers.

A row (see `packing.py`) goes block by block, groups of equal shape together: the prompts over themselves, causally;
then all completions, batched, over [their prompt, themselves]. No mask of row by row size exists, and completions never
see each other. `attention_backends.py` has other kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grpo.packing import Block, Layout
from grpo.policy.attention_backends import chosen_backend, dense_rows, flex_rows, varlen_rows
from grpo.policy.split_attention import SplitAttention

logger = logging.getLogger(__name__)

SHARED_PREFIX = "shared_prefix"

NOT_COMPUTED = ("softcap", "s_aux")
"""Arguments of other families that change the result, a cap on scores and attention sinks: no kernel here has them."""

VISION_CHUNKS = "flash_calling_convention_vision_chunks"
"""transformers hands a whole clip to an implementation with "flash" in its name, and loops over the
clip's windows in Python otherwise: hundreds of small calls per layer."""


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    backend: str = "auto",
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention over a packed row; without a layout, plain causal attention.

    query: (1, heads, N, D); key and value: (1, kv heads, N, D). Returns (1, N, heads, D). A model that caps its scores
    or has attention sinks is a ValueError.
    """
    unknown = [name for name in NOT_COMPUTED if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(f"this model's attention has {', '.join(unknown)}, which packed rows don't compute")
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # pyright: ignore
    # Under autocast the rotary embedding leaves queries and keys in fp32, and the bias object takes no mix.
    query, key = query.to(value.dtype), key.to(value.dtype)
    arguments = (query[0], key[0], value[0], layout, scaling)
    if sliding_window is not None:
        _warn_of_window()
        return dense_rows(*arguments, sliding_window)[None], None
    return BACKENDS[chosen_backend(backend, query.device.type, query.dtype)](*arguments)[None], None


@lru_cache
def _warn_of_window() -> None:
    logger.warning("this model's attention has a sliding window: packed rows use a mask of row by row size")


def by_blocks(
    query_HND: Tensor,
    key_KND: Tensor,
    value_KND: Tensor,
    layout: Layout,
    scaling: float | None,
    *,
    complete: Callable[..., Tensor],
) -> Tensor:
    """PyTorch's kernels: per block the prompts over themselves, and then their completions, (N, H, D)."""
    outputs = []
    for block in layout.blocks:
        # All of (R, heads, P, D).
        query, key, value = (x[:, block.prompt_RP].transpose(0, 1) for x in (query_HND, key_KND, value_KND))
        prompts = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        own = (x[:, block.completion_RGL] for x in (query_HND, key_KND, value_KND))
        completions_HRGLD = complete(*own, key, value, block, scaling)
        outputs += [prompts.transpose(1, 2).flatten(0, 1), completions_HRGLD.flatten(1, 3).transpose(0, 1)]
    return torch.cat(outputs)[layout.restore_N]


def in_one_call(
    query: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    block: Block,
    scaling: float | None,
) -> Tensor:
    """Completions over their prompt and themselves, for which the prompt's keys are repeated.

    Their own states and the output: (heads, R, G, L, D); the prompts': (R, heads, P, D).
    """
    shape = query.shape[1:3]

    def joined(prompt: Tensor, own: Tensor) -> Tensor:
        repeated = prompt.transpose(0, 1)[:, :, None].expand(-1, -1, shape[1], -1, -1)
        return torch.cat([repeated, own], dim=3).flatten(1, 2).transpose(0, 1)

    output = F.scaled_dot_product_attention(
        query.flatten(1, 2).transpose(0, 1),
        joined(prompt_key, own_key),
        joined(prompt_value, own_value),
        attn_mask=completion_mask(block, query.device.type),
        scale=scaling,
        enable_gqa=True,
    )
    return output.transpose(0, 1).unflatten(1, shape)


def in_two_parts(
    query: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    block: Block,
    scaling: float | None,
) -> Tensor:
    """The same without repeating anything."""
    return SplitAttention.apply(query, prompt_key, prompt_value, own_key, own_value, scaling)


def completion_mask(block: Block, device_type: str) -> Tensor:
    """The mask of a block's completions; on CUDA an object that stands for it and reaches a flash kernel, with nothing
    in memory."""
    return causal_lower_right(*block.mask_LS.shape) if device_type == "cuda" else block.mask_LS


def vision_chunk_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention inside each chunk of the vision tower (a frame or a window), one call per chunk length.

    query, key, value: (1, heads, N, D); cu_seq_lens_q: the chunks' boundaries. Returns (1, N, heads, D).
    """
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    parts, indices = [], []
    for length in lengths.unique().tolist():
        index_BT = starts[lengths == length][:, None] + torch.arange(length, device=query.device)
        q, k, v = (x[0, :, index_BT].transpose(0, 1) for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        parts.append(out.transpose(1, 2).flatten(0, 1))
        indices.append(index_BT.flatten())
    output = torch.cat(parts)[torch.cat(indices).argsort()]
    return output[None], None


BACKENDS = {
    "sdpa": partial(by_blocks, complete=in_one_call),
    "split": partial(by_blocks, complete=in_two_parts),
    "flex": flex_rows,
    "flash_attn": varlen_rows,
}


def implementation(backend: str) -> str:
    """The name under which transformers finds the attention of packed rows with a kernel, or with `auto`."""
    # No "flash" in it: transformers would make other masks.
    return f"{SHARED_PREFIX}_{backend.replace('flash', 'varlen')}"


for _backend in ("auto", *BACKENDS):
    AttentionInterface.register(
        implementation(_backend),
        partial(shared_prefix_attention, backend=_backend),  # pyright: ignore
    )
AttentionInterface.register(VISION_CHUNKS, vision_chunk_attention)
