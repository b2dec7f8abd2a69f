"""Kernels that compute the attention of a packed row in one call: FlexAttention, flash-attn, and a dense mask.

All take the queries, keys and values of a flat row and return (N, A, E). What a kernel needs to know of a row is
computed once for all layers. The dense mask is for what the others can't do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.packing import Layout

logger = logging.getLogger(__name__)

FLEX_BLOCK = 128
"""The tokens of a block of queries or keys, all of which FlexAttention skips if none sees another; its default."""


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
        *batch_of_1, block_mask=block_mask(layout), scale=scaling, enable_gqa=True
    )
    return out_ANE.transpose(0, 1)


@lru_cache
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@lru_cache(maxsize=2)
def block_mask(layout: Layout) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    counts_QQ, num_tokens = _visible_counts(layout), len(layout.restore_N)
    # A block at the end of the row has fewer tokens, and is never whole: the kernel has to look at its mask.
    partial_QQ = (counts_QQ > 0) & (counts_QQ < FLEX_BLOCK**2)
    return BlockMask.from_kv_blocks(
        *_listed(partial_QQ),
        *_listed(counts_QQ == FLEX_BLOCK**2),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=lambda batch, head, query, key: sees(layout, query, key),
        seq_lengths=(num_tokens, num_tokens),
    )


def _visible_counts(layout: Layout) -> Tensor:
    """Return how many pairs of tokens see each other in each pair of blocks, (blocks of queries, blocks of keys).

    One block of queries after another: what `create_block_mask` makes is N x N, in several tensors.
    """
    num_tokens, device = len(layout.restore_N), layout.restore_N.device
    num_blocks = -(-num_tokens // FLEX_BLOCK)
    key_N = torch.arange(num_tokens, device=device)
    counts_QQ = torch.zeros(num_blocks, num_blocks, dtype=torch.int32, device=device)
    for row, query in enumerate(key_N.split(FLEX_BLOCK)):
        sees_N = sees(layout, query[:, None], key_N).sum(0, dtype=torch.int32)
        counts_QQ[row].index_add_(0, key_N // FLEX_BLOCK, sees_N)
    return counts_QQ


def _listed(is_set_QQ: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries has, and their indices, with axes for batch and heads."""
    order_QQ = is_set_QQ.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return is_set_QQ.sum(1, dtype=torch.int32)[None, None], order_QQ.to(torch.int32)[None, None]


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


@lru_cache
def why_no_flash_attn() -> str | None:
    """Return why flash-attn can't be used here; None: it can.

    It is imported, since a package that was built for another torch is found all the same.
    """
    try:
        import_module("flash_attn")
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return "flash-attn is not installed"
        reason = str(error)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
    else:
        return None
    logger.warning("flash-attn is installed but does not load, and PyTorch's kernels are used: %s", reason)
    return f"flash-attn does not load ({reason})"


def check_backend(name: str) -> None:
    """Raise ValueError if a kernel was asked for that can't train here."""
    if name == "flash_attn" and (reason := why_no_flash_attn()) is not None:
        raise ValueError(f"model.attention=flash_attn: {reason}; leave it at auto")
    if name == "flex" and not torch.cuda.is_available():
        raise ValueError(
            "model.attention=flex: FlexAttention has no backward pass on a CPU; leave it at auto"
        )


def chosen_backend(name: str, device_type: str, dtype: torch.dtype) -> str:
    """Resolve `auto`: on a GPU flash-attn if it loads and the precision has 16 bits; else PyTorch's kernels."""
    if name != "auto":
        return name
    if device_type == "cpu":
        return "split"
    can_flash = dtype in (torch.bfloat16, torch.float16)
    return "flash_attn" if can_flash and why_no_flash_attn() is None else "sdpa"
