"""Attention of completions over [their prompt, themselves] that has the prompt's keys in memory once for all of them.

The two parts are computed apart and merged by their softmax sums, as in Hydragen (arXiv 2402.05099). Given the merged
output and sums, the kernel's backward pass of each part yields that part's share of the exact gradient, as in ring
attention (arXiv 2310.01889). PyTorch's public attention function keeps the sums to itself, so the operators behind it
are called here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ATEN: Any = torch.ops.aten


class SplitAttention(torch.autograd.Function):
    """The attention of completions, with an output of (A, P, G, L, E) as their queries.

    The arguments are the completions' queries; the prompts' keys and values (P, K, S, E), where A is a multiple of K;
    the completions' own (K, P, G, L, E); and the factor of the scores, None for 1 / sqrt(E).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_APGLE: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        scaling: float | None,
    ) -> Tensor:
        shape = _shape(query_APGLE)
        over_prompt, prompt_sums, prompt_state = _attend(
            _by_prompt(query_APGLE), prompt_key, prompt_value, is_causal=False, scaling=scaling
        )
        over_own, own_sums, own_state = _attend(
            _by_completion(query_APGLE),
            _by_completion(own_key),
            _by_completion(own_value),
            is_causal=True,
            scaling=scaling,
        )
        # Each part is a softmax over its own keys; its share of the whole is its sum over the sum of both parts.
        prompt_sums_APGL, own_sums_APGL = _from_prompt(prompt_sums, shape), _from_completion(own_sums, shape)
        sums_APGL = torch.logaddexp(prompt_sums_APGL, own_sums_APGL)
        output_APGLE = _from_prompt(over_prompt, shape) * (prompt_sums_APGL - sums_APGL).exp()[..., None]
        output_APGLE = output_APGLE + (
            _from_completion(over_own, shape) * (own_sums_APGL - sums_APGL).exp()[..., None]
        )
        output_APGLE = output_APGLE.to(query_APGLE.dtype)
        ctx.save_for_backward(
            query_APGLE, prompt_key, prompt_value, own_key, own_value, output_APGLE, sums_APGL
        )
        ctx.states, ctx.scaling = (prompt_state, own_state), scaling
        return output_APGLE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_APGLE, prompt_key, prompt_value, own_key, own_value, output_APGLE, sums_APGL = ctx.saved_tensors
        shape, per_query = _shape(query_APGLE), (gradients[0], query_APGLE, output_APGLE, sums_APGL)
        # All queries of a prompt as one sequence, over the prompt's keys: (P, A, G*L, E) over (P, K, S, E).
        gradient, query, output, sums = map(_by_prompt, per_query)
        to_query, *to_prompt = _attend_backward(
            (gradient, query, prompt_key, prompt_value, output, sums.contiguous()),
            ctx.states[0],
            is_causal=False,
            scaling=ctx.scaling,
        )
        # Each completion's queries over its own keys: (B, A, L, E) over (B, K, L, E).
        keys = (_by_completion(own_key), _by_completion(own_value))
        gradient, query, output, sums = map(_by_completion, per_query)
        also_to_query, *to_own = _attend_backward(
            (gradient, query, *keys, output, sums.contiguous()),
            ctx.states[1],
            is_causal=True,
            scaling=ctx.scaling,
        )
        to_query_APGLE = _from_prompt(to_query, shape) + _from_completion(also_to_query, shape)
        return (to_query_APGLE, *to_prompt, *(_from_completion(each, shape) for each in to_own), None)


def _shape(query_APGLE: Tensor) -> tuple[int, int, int]:
    """Return P, G and L."""
    _, num_prompts, group_size, length, _ = query_APGLE.shape
    return num_prompts, group_size, length


def _by_prompt(x_APGL: Tensor) -> Tensor:
    """Turn (A, P, G, L, ...) into a batch of prompts, all queries of a prompt in one sequence: (P, A, G*L, ...)."""
    return x_APGL.transpose(0, 1).flatten(2, 3)


def _by_completion(x_APGL: Tensor) -> Tensor:
    """Turn (A, P, G, L, ...) into a batch of completions: (B, A, L, ...)."""
    return x_APGL.flatten(1, 2).transpose(0, 1)


def _from_prompt(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Undo `_by_prompt`. shape: P, G, L."""
    return x.unflatten(2, shape[1:]).transpose(0, 1)


def _from_completion(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Undo `_by_completion`. shape: P, G, L."""
    return x.transpose(0, 1).unflatten(1, shape[:2])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scaling: float | None
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Return attention of (batch, heads, tokens, E), the logarithm of the softmax's sums, (batch, heads, tokens), and
    the state that the kernel's backward pass needs."""
    if query.device.type == "cuda":
        output, sums, *state, _ = ATEN._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, scale=scaling
        )
        return output, sums, tuple(state)
    attend = ATEN._scaled_dot_product_flash_attention_for_cpu
    return *attend(query, key, value, 0.0, is_causal, scale=scaling), ()


def _attend_backward(
    tensors: tuple[Tensor, ...], state: tuple[Any, ...], *, is_causal: bool, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value. tensors: the output's gradient, query, key, value, output, sums."""
    if state:
        starts_and_lengths, random_state = state[:4], state[4:]
        return ATEN._scaled_dot_product_flash_attention_backward(
            *tensors, *starts_and_lengths, 0.0, is_causal, *random_state, scale=scaling
        )
    return ATEN._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, is_causal, scale=scaling)
