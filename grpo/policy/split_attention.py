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
    """The output, in the queries' shape (H, R, G, L, D): R prompts of P tokens, G completions of L tokens each.

    Arguments: the completions' queries; the prompts' keys and values (R, K, P, D), where H is a multiple of K; the
    completions' own (K, R, G, L, D); what scores are multiplied by, None for 1 / sqrt(D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_HRGLD: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        scaling: float | None,
    ) -> Tensor:
        shape = _shape(query_HRGLD)
        over_prompt, prompt_sums, prompt_state = _attend(
            _by_prompt(query_HRGLD), prompt_key, prompt_value, is_causal=False, scaling=scaling
        )
        over_own, own_sums, own_state = _attend(
            _by_completion(query_HRGLD),
            _by_completion(own_key),
            _by_completion(own_value),
            is_causal=True,
            scaling=scaling,
        )
        prompt_sums, own_sums = _from_prompt(prompt_sums, shape), _from_completion(own_sums, shape)
        sums = torch.logaddexp(prompt_sums, own_sums)
        output = _from_prompt(over_prompt, shape) * (prompt_sums - sums).exp()[..., None]
        output = output + _from_completion(over_own, shape) * (own_sums - sums).exp()[..., None]
        output = output.to(query_HRGLD.dtype)
        ctx.save_for_backward(query_HRGLD, prompt_key, prompt_value, own_key, own_value, output, sums)
        ctx.states, ctx.scaling = (prompt_state, own_state), scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_HRGLD, prompt_key, prompt_value, own_key, own_value, output, sums = ctx.saved_tensors
        shape, per_query = _shape(query_HRGLD), (gradients[0], query_HRGLD, output, sums)
        gradient, query, merged, merged_sums = map(_by_prompt, per_query)
        to_query, *to_prompt = _attend_backward(
            (gradient, query, prompt_key, prompt_value, merged, merged_sums.contiguous()),
            ctx.states[0],
            is_causal=False,
            scaling=ctx.scaling,
        )
        keys = (_by_completion(own_key), _by_completion(own_value))
        gradient, query, merged, merged_sums = map(_by_completion, per_query)
        also_to_query, *to_own = _attend_backward(
            (gradient, query, *keys, merged, merged_sums.contiguous()),
            ctx.states[1],
            is_causal=True,
            scaling=ctx.scaling,
        )
        to_query = _from_prompt(to_query, shape) + _from_completion(also_to_query, shape)
        return (to_query, *to_prompt, *(_from_completion(each, shape) for each in to_own), None)


def _shape(query_HRGLD: Tensor) -> tuple[int, int, int]:
    _, num_prompts, group_size, length, _ = query_HRGLD.shape
    return num_prompts, group_size, length


def _by_prompt(x_HRGL: Tensor) -> Tensor:
    """(H, R, G, L, ...) as a batch of prompts, all queries of a prompt in one sequence: (R, H, G*L, ...)."""
    return x_HRGL.transpose(0, 1).flatten(2, 3)


def _by_completion(x_HRGL: Tensor) -> Tensor:
    """(H, R, G, L, ...) as a batch of completions: (R*G, H, L, ...)."""
    return x_HRGL.flatten(1, 2).transpose(0, 1)


def _from_prompt(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """What `_by_prompt` has changed, undone; shape: R, G, L."""
    return x.unflatten(2, shape[1:]).transpose(0, 1)


def _from_completion(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """What `_by_completion` has changed, undone; shape: R, G, L."""
    return x.transpose(0, 1).unflatten(1, shape[:2])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scaling: float | None
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Attention of (B, heads, T, D) with the logarithm of the softmax's sums, (B, heads, T), and what else the kernel's
    backward pass asks for."""
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
    """Gradients of query, key and value. tensors: the output's gradient, query, key, value, output, sums."""
    if state:
        starts_and_lengths, random_state = state[:4], state[4:]
        return ATEN._scaled_dot_product_flash_attention_backward(
            *tensors, *starts_and_lengths, 0.0, is_causal, *random_state, scale=scaling
        )
    return ATEN._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, is_causal, scale=scaling)
