"""Kernels that compute the attention of a packed row in one call: FlexAttention, flash-attn, and a dense mask.

All take the queries, keys and values of a flat row and return (N, A, E). What a kernel needs to know of a row is
computed once for all layers. The dense mask is for what the others can't do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.packing import Layout


class QKV(NamedTuple):
    """The queries, keys and values of the same tokens: (A, ..., E), (K, ..., E) and (K, ..., E)."""

    query: Tensor
    key: Tensor
    value: Tensor

    def at(self, index: Tensor) -> QKV:
        """Return the states of the tokens at some flat positions of a row: (A, *index.shape, E)."""
        return QKV(self.query[:, index], self.key[:, index], self.value[:, index])

    def swapped(self) -> QKV:
        """Return the states with their first two axes swapped."""
        return QKV(*(each.transpose(0, 1) for each in self))


def sees(layout: Layout, query: Tensor, key: Tensor) -> Tensor:
    """Return whether query positions may look at key positions: index tensors of any shape that broadcast."""
    same_text = layout.prompt_N[query] == layout.prompt_N[key]
    common = (layout.completion_N[key] < 0) | (layout.completion_N[key] == layout.completion_N[query])
    return same_text & common & (layout.offset_N[key] <= layout.offset_N[query])


def dense_rows(states: QKV, layout: Layout, scaling: float | None, window: int) -> Tensor:
    """Compute attention with a mask of N x N in memory. window: the number of tokens that a token sees, with itself."""
    index_N = torch.arange(len(layout.restore_N), device=layout.restore_N.device)
    distance_NN = layout.offset_N[:, None] - layout.offset_N
    mask_NN = sees(layout, index_N[:, None], index_N) & (distance_NN < window)
    batch_of_1 = (each[None] for each in states)
    (out_ANE,) = F.scaled_dot_product_attention(
        *batch_of_1, attn_mask=mask_NN, scale=scaling, enable_gqa=True
    )
    return out_ANE.transpose(0, 1)


def flex_rows(states: QKV, layout: Layout, scaling: float | None) -> Tensor:
    """Compute attention with FlexAttention: on a GPU compiled, so that it skips blocks that are all masked."""
    batch_of_1 = (each[None] for each in states)
    (out_ANE,) = _flex(states.query.device.type)(
        *batch_of_1, block_mask=_block_mask(layout), scale=scaling, enable_gqa=True
    )
    return out_ANE.transpose(0, 1)


@lru_cache
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@lru_cache(maxsize=2)
def _block_mask(layout: Layout) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    num_tokens = len(layout.restore_N)
    return create_block_mask(
        lambda batch, head, query, key: sees(layout, query, key),
        B=None,
        H=None,
        Q_LEN=num_tokens,
        KV_LEN=num_tokens,
        device=str(layout.restore_N.device),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sequences:
    """A row as sequences without padding: each prompt over itself, each completion over its prompt and itself.

    The queries of one sequence after another are the row itself.
    """

    key_index: Tensor
    """The flat positions of the keys, sequence after sequence."""
    query_starts: Tensor
    """The start of each sequence, and the end of the last one; int32, as the kernel needs it."""
    key_starts: Tensor
    longest_query: int
    longest_key: int


def varlen_rows(states: QKV, layout: Layout, scaling: float | None) -> Tensor:
    """Compute attention with flash-attn's kernel for sequences of any lengths, causal from the end of the keys."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    parts, by_token = sequences(layout), states.swapped()
    return flash_attn_varlen_func(
        by_token.query,
        by_token.key[parts.key_index],
        by_token.value[parts.key_index],
        cu_seqlens_q=parts.query_starts,
        cu_seqlens_k=parts.key_starts,
        max_seqlen_q=parts.longest_query,
        max_seqlen_k=parts.longest_key,
        softmax_scale=scaling,
        causal=True,
    )


@lru_cache(maxsize=2)
def sequences(layout: Layout) -> Sequences:
    """Return the sequences of a row."""
    texts_2N = torch.stack([layout.prompt_N, layout.completion_N])
    texts_2C, lengths_C = torch.unique_consecutive(texts_2N, dim=1, return_counts=True)
    queries = torch.arange(texts_2N.shape[1], device=texts_2N.device).split(lengths_C.tolist())
    prompts = [own for own, completion in zip(queries, texts_2C[1].tolist(), strict=True) if completion < 0]
    keys = [
        own if completion < 0 else torch.cat([prompts[prompt], own])
        for own, (prompt, completion) in zip(queries, texts_2C.T.tolist(), strict=True)
    ]
    return Sequences(
        key_index=torch.cat(keys),
        query_starts=_starts(queries),
        key_starts=_starts(keys),
        longest_query=max(map(len, queries)),
        longest_key=max(map(len, keys)),
    )


def _starts(parts: Sequence[Tensor]) -> Tensor:
    lengths = torch.tensor([0, *map(len, parts)], dtype=torch.int32, device=parts[0].device)
    return lengths.cumsum(0, dtype=torch.int32)


def check_backend(name: str) -> None:
    """Raise ValueError if a kernel was asked for that can't train here."""
    if name == "flash_attn" and find_spec("flash_attn") is None:
        raise ValueError("model.attention=flash_attn: flash-attn is not installed; leave it at auto")
    if name == "flex" and not torch.cuda.is_available():
        raise ValueError(
            "model.attention=flex: FlexAttention has no backward pass on a CPU; leave it at auto"
        )


def chosen_backend(name: str, device_type: str, dtype: torch.dtype) -> str:
    """Resolve `auto`: on a GPU flash-attn if it is installed and the precision has 16 bits; else PyTorch's kernels."""
    if name != "auto":
        return name
    if device_type == "cpu":
        return "split"
    can_flash = dtype in (torch.bfloat16, torch.float16)
    return "flash_attn" if can_flash and find_spec("flash_attn") is not None else "sdpa"
