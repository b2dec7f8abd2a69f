"""Kernels that compute the attention of a packed row in one call: FlexAttention, flash-attn, and a dense mask.

All take the queries, keys and values of a flat row and return (N, A, E). What a kernel needs to know of a row is
computed once for all layers. The dense mask is for what the others can't do.
"""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Membership:
    """The prompt and completion of each flat position of a row, and its offset from the prompt's start, all (N,)."""

    prompt_N: Tensor
    completion_N: Tensor
    """The index of the completion in the row; -1 for a prompt's own token."""
    offset_N: Tensor

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether query positions may look at key positions: index tensors of any shape that broadcast."""
        same_text = self.prompt_N[query] == self.prompt_N[key]
        common = (self.completion_N[key] < 0) | (self.completion_N[key] == self.completion_N[query])
        return same_text & common & (self.offset_N[key] <= self.offset_N[query])


@lru_cache(maxsize=2)
def membership(layout: Layout) -> Membership:
    """Return the prompt, completion and offset of each flat position of a row."""
    prompt_N, offset_N = (torch.zeros_like(layout.restore_N) for _ in range(2))
    completion_N = torch.full_like(layout.restore_N, -1)
    num_prompts = num_completions = 0
    device = layout.restore_N.device
    for block in layout.blocks:
        # The flat positions that everything below is written to.
        index_PS, index_PGL, index_BL = (
            block.prompt_PS,
            block.completion_PGL,
            block.completion_PGL.flatten(0, 1),
        )
        prompt_P = torch.arange(len(index_PS), device=device) + num_prompts
        prompt_N[index_PS] = prompt_P[:, None].expand_as(index_PS)
        prompt_N[index_PGL] = prompt_P[:, None, None].expand_as(index_PGL)
        completion_B = torch.arange(len(index_BL), device=device) + num_completions
        completion_N[index_BL] = completion_B[:, None].expand_as(index_BL)
        num_tokens, longest = index_PS.shape[1], index_BL.shape[1]
        offset_N[index_PS] = torch.arange(num_tokens, device=device).expand_as(index_PS)
        offset_BL = num_tokens + torch.arange(longest, device=device).expand_as(index_BL)
        # Padding repeats a completion's first token, whose own offset is the smallest.
        offset_N.scatter_reduce_(0, index_BL.flatten(), offset_BL.flatten(), "amin", include_self=False)
        num_prompts, num_completions = num_prompts + len(index_PS), num_completions + len(index_BL)
    return Membership(prompt_N=prompt_N, completion_N=completion_N, offset_N=offset_N)


def dense_rows(states: QKV, layout: Layout, scaling: float | None, window: int) -> Tensor:
    """Compute attention with a mask of N x N in memory. window: the number of tokens that a token sees, with itself."""
    members = membership(layout)
    index_N = torch.arange(len(layout.restore_N), device=layout.restore_N.device)
    distance_NN = members.offset_N[:, None] - members.offset_N
    mask_NN = members.sees(index_N[:, None], index_N) & (distance_NN < window)
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

    members, num_tokens = membership(layout), len(layout.restore_N)
    return create_block_mask(
        lambda batch, head, query, key: members.sees(query, key),
        B=None,
        H=None,
        Q_LEN=num_tokens,
        KV_LEN=num_tokens,
        device=str(layout.restore_N.device),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sequences:
    """A row as sequences without padding: each prompt over itself, each completion over its prompt and itself."""

    query_index: Tensor
    """The flat positions of the queries, sequence after sequence."""
    key_index: Tensor
    query_starts: Tensor
    """The start of each sequence, and the end of the last one; int32, as the kernel needs it."""
    key_starts: Tensor
    longest_query: int
    longest_key: int


def varlen_rows(states: QKV, layout: Layout, scaling: float | None) -> Tensor:
    """Compute attention with flash-attn's kernel for sequences of any lengths, causal from the end of the keys."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    parts, by_token = sequences(layout), states.swapped()
    out_NAE = flash_attn_varlen_func(
        by_token.query[parts.query_index],
        by_token.key[parts.key_index],
        by_token.value[parts.key_index],
        cu_seqlens_q=parts.query_starts,
        cu_seqlens_k=parts.key_starts,
        max_seqlen_q=parts.longest_query,
        max_seqlen_k=parts.longest_key,
        softmax_scale=scaling,
        causal=True,
    )
    return torch.empty_like(out_NAE).index_copy(0, parts.query_index, out_NAE)


@lru_cache(maxsize=2)
def sequences(layout: Layout) -> Sequences:
    """Return the sequences of a row."""
    members = membership(layout)
    queries, keys = [], []
    for block in layout.blocks:
        prompts = list(block.prompt_PS)
        queries += prompts
        keys += prompts
        for prompt_S, own_GL in zip(prompts, block.completion_PGL, strict=True):
            # Padding has a larger offset here than the token that it repeats.
            offset_L = len(prompt_S) + torch.arange(own_GL.shape[1], device=own_GL.device)
            real = [own_L[members.offset_N[own_L] == offset_L] for own_L in own_GL]
            queries += real
            keys += [torch.cat([prompt_S, own]) for own in real]
    return Sequences(
        query_index=torch.cat(queries),
        key_index=torch.cat(keys),
        query_starts=_starts(queries),
        key_starts=_starts(keys),
        longest_query=max(map(len, queries)),
        longest_key=max(map(len, keys)),
    )


def _starts(parts: list[Tensor]) -> Tensor:
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
