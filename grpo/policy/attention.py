"""Attention for packed rows and for the vision tower, registered with transformers.

A row (see `packing.py`) is computed block by block, groups of equal shape together: the prompts over themselves,
causally; then all completions, batched, over [their prompt, themselves]. No mask of N x N exists, and completions
never see each other. `attention_backends.py` has other kernels.
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

from grpo.packing import Layout
from grpo.policy.attention_backends import QKV, chosen_backend, dense_rows, flex_rows, varlen_rows
from grpo.policy.sequence_split import ALONE, SequenceSplit
from grpo.policy.split_attention import SplitAttention

logger = logging.getLogger(__name__)

SHARED_PREFIX = "shared_prefix"

NOT_COMPUTED = ("softcap", "s_aux")
"""The arguments of other families that no kernel here has: a cap on scores, and attention sinks."""

VISION_CHUNKS = "flash_calling_convention_vision_chunks"
"""The name of the vision tower's attention. transformers gives a whole clip to an implementation with "flash" in its
name, and otherwise loops over the clip's windows in Python: hundreds of small calls per layer."""


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    backend: str = "auto",
    layout: Layout | None = None,
    split: SequenceSplit = ALONE,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute attention over a packed row; without a layout, plain causal attention.

    query: (1, A, N, E); key and value: (1, K, N, E). Returns (1, N, A, E). Under a split, N is this process's part of
    the row. Raises ValueError for a model that caps its scores or has attention sinks.
    """
    unknown = [name for name in NOT_COMPUTED if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(f"this model's attention has {', '.join(unknown)}, which packed rows don't compute")
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # pyright: ignore
    # Under autocast the rotary embedding leaves queries and keys in fp32, and the bias object takes no mix.
    states = QKV(query[0].to(value.dtype), key[0].to(value.dtype), value[0])
    states = split.to_heads(states, len(layout.restore_N))
    if sliding_window is None:
        attend = BACKENDS[chosen_backend(backend, value.device.type, value.dtype)]
    else:
        _warn_of_window()
        attend = partial(dense_rows, window=sliding_window)
    return split.to_positions(attend(states, layout, scaling))[None], None


@lru_cache
def _warn_of_window() -> None:
    logger.warning("this model's attention has a sliding window: packed rows use a mask of row by row size")


def by_blocks(
    states: QKV, layout: Layout, scaling: float | None, *, complete: Callable[..., Tensor]
) -> Tensor:
    """Compute attention, (N, A, E), with PyTorch's kernels: in each block the prompts, and then their completions."""
    outputs = []
    for block in layout.blocks:
        # (P, A, S, E), with K in the place of A for keys and values.
        prompts = states.at(block.prompt_PS).swapped()
        over_prompts = F.scaled_dot_product_attention(
            *prompts, is_causal=True, scale=scaling, enable_gqa=True
        )
        # (A, P, G, L, E), again with K in the place of A for keys and values.
        completions = states.at(block.completion_PGL)
        over_both = complete(completions, prompts, scaling)
        # The outputs in the order of the blocks, (P * S, A, E) and (P * G * L, A, E).
        outputs += [over_prompts.transpose(1, 2).flatten(0, 1), over_both.flatten(1, 3).transpose(0, 1)]
    return torch.cat(outputs)[layout.restore_N]


def in_one_call(completions: QKV, prompts: QKV, scaling: float | None) -> Tensor:
    """Compute the attention of completions over their prompt and themselves; the prompt's keys are repeated.

    completions and the output: (A, P, G, L, E); prompts: (P, A, S, E).
    """
    num_prompts, group_size = completions.query.shape[1:3]

    def joined(prompt_PKSE: Tensor, own_KPGLE: Tensor) -> Tensor:
        """Return the prompt's states and behind them each completion's own, (B, K, J, E)."""
        repeated_KPGSE = prompt_PKSE.transpose(0, 1)[:, :, None].expand(-1, -1, group_size, -1, -1)
        return torch.cat([repeated_KPGSE, own_KPGLE], dim=3).flatten(1, 2).transpose(0, 1)

    output_BALE = F.scaled_dot_product_attention(
        completions.query.flatten(1, 2).transpose(0, 1),
        joined(prompts.key, completions.key),
        joined(prompts.value, completions.value),
        attn_mask=completion_mask(
            completions.query.shape[-2], prompts.key.shape[-2], completions.query.device.type
        ),
        scale=scaling,
        enable_gqa=True,
    )
    return output_BALE.transpose(0, 1).unflatten(1, (num_prompts, group_size))


def in_two_parts(completions: QKV, prompts: QKV, scaling: float | None) -> Tensor:
    """Compute the output of `in_one_call` without repeating the prompt's keys."""
    return SplitAttention.apply(
        completions.query, prompts.key, prompts.value, completions.key, completions.value, scaling
    )


def completion_mask(length: int, num_prompt: int, device_type: str) -> Tensor:
    """Return the mask of completions over [their prompt, themselves], (L, J).

    A token sees its prompt, and what precedes it in its completion. Padding comes last, so no token sees it. On CUDA it
    is an object without memory, which a flash kernel understands.
    """
    shape = (length, num_prompt + length)
    if device_type == "cuda":
        return causal_lower_right(*shape)
    return torch.ones(shape, dtype=torch.bool).tril(num_prompt)


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
    """Compute attention inside each chunk of the vision tower (a frame or a window), one call per chunk length.

    query, key, value: (1, A, N, E); cu_seq_lens_q: the chunks' boundaries. Returns (1, N, A, E).
    """
    states, parts = QKV(query[0], key[0], value[0]), []
    indices, restore_N = vision_chunks(cu_seq_lens_q)
    for index in indices:
        out = F.scaled_dot_product_attention(*states.at(index).swapped(), scale=scaling)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[restore_N][None], None


@lru_cache(maxsize=4)
def vision_chunks(cu_seq_lens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the flat positions of the chunks of each length, (chunks, length), and each position's output, (N,).

    All layers of a pass share the tensors of boundaries, one of frames and one of windows: asking the GPU for lengths
    in each layer would make it wait.
    """
    starts, lengths = cu_seq_lens[:-1], cu_seq_lens.diff()
    indices = [
        starts[lengths == length][:, None] + torch.arange(length, device=cu_seq_lens.device)
        for length in lengths.unique().tolist()
    ]
    return indices, torch.cat([index.flatten() for index in indices]).argsort()


BACKENDS = {
    "sdpa": partial(by_blocks, complete=in_one_call),
    "split": partial(by_blocks, complete=in_two_parts),
    "flex": flex_rows,
    "flash_attn": varlen_rows,
}


def implementation(backend: str) -> str:
    """Return transformers' name for the attention of packed rows with a kernel, or with `auto`."""
    # The name has no "flash" in it: transformers would make other masks.
    return f"{SHARED_PREFIX}_{backend.replace('flash', 'varlen')}"


for _backend in ("auto", *BACKENDS):
    AttentionInterface.register(
        implementation(_backend),
        partial(shared_prefix_attention, backend=_backend),  # pyright: ignore
    )
AttentionInterface.register(VISION_CHUNKS, vision_chunk_attention)
