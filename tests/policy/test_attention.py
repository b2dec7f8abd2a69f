"""Every kernel for packed rows gives what PyTorch's public attention gives, and that what plain forwards give
(`test_packing.py`)."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.config.load import load_config
from grpo.packing import Block, PackedRow
from grpo.policy import attention_backends
from grpo.policy.attention import in_one_call, in_two_parts, shared_prefix_attention
from grpo.policy.attention_backends import QKV, check_backend, chosen_backend
from tests.support import tiny
from tests.support.learners import gradient_of, packed


def scores(row: PackedRow, attention: str) -> tuple[Tensor, Tensor]:
    policy = tiny.policy(seed=1, attention=attention)
    logps_T = policy(row).logps_T
    (logps_T * row.advantages_T).sum().backward()
    return logps_T.detach(), gradient_of(policy)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **options: Any
) -> Tensor:
    """What flash-attn, which is built for GPUs only, documents: causal, aligned to the last key."""
    assert options["causal"] and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert options["max_seqlen_q"] == max(lengths_q) and options["max_seqlen_k"] == max(lengths_k)
    outputs = []
    for one_q, one_k, one_v in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        mask = torch.ones(len(one_q), len(one_k), dtype=torch.bool).tril(len(one_k) - len(one_q))
        parts = (part.transpose(0, 1)[None] for part in (one_q, one_k, one_v))
        out = F.scaled_dot_product_attention(
            *parts,
            attn_mask=mask,
            scale=options["softmax_scale"],
            enable_gqa=True,
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("sizes", [(2, 3, 40, 7), (1, 5, 600, 65), (3, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_a_prompt_split_off_gives_the_same_output_and_gradient(
    sizes: tuple[int, int, int, int], scaling: float | None
) -> None:
    """Queries have 6 heads, keys 2."""
    num_prompts, group_size, num_prompt, length = sizes
    shape = (num_prompts, group_size, length, 16)
    torch.manual_seed(0)
    own = QKV(*(torch.randn(heads, *shape, dtype=torch.float64) for heads in (6, 2, 2)))
    keys, values = (torch.randn(num_prompts, 2, num_prompt, 16, dtype=torch.float64) for _ in range(2))
    states = [*own, keys, values]
    for state in states:
        state.mul_(3).requires_grad_()  # sharp, so that either part may dominate
    mask_LJ = torch.ones(length, num_prompt + length, dtype=torch.bool).tril(num_prompt)
    nothing = torch.zeros(0)
    prompts = QKV(nothing, keys, values)
    block = Block(prompt_PS=nothing, completion_PGL=nothing, mask_LJ=mask_LJ)
    weight = torch.randn_like(own.query)
    found, expected = (
        (output, *torch.autograd.grad((output * weight).sum(), states))
        for output in (
            in_two_parts(own, prompts, block, scaling),
            in_one_call(own, prompts, block, scaling),
        )
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_a_prompt_split_off_works_under_autocast() -> None:
    (row,) = packed(tiny.ragged_groups()[3:])
    expected, expected_gradient = scores(row, "sdpa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradient = scores(row, "split")
    assert found.dtype == torch.float32
    assert float((found - expected).abs().mean()) < 0.2  # of about -20
    assert float(F.cosine_similarity(gradient, expected_gradient, dim=0)) > 0.99


def test_flash_attn_is_asked_for_what_sdpa_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    (row,) = packed(tiny.ragged_groups()[3:])
    assert len(row.layout.blocks) > 1
    (found, gradient), (expected, expected_gradient) = scores(row, "flash_attn"), scores(row, "sdpa")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-4


@torch.no_grad()
def test_flex_attention_gives_what_sdpa_gives() -> None:
    """Its backward pass exists on GPUs only: see `tests/gpu`."""
    (row,) = packed(tiny.ragged_groups()[3:])
    expected, found = (tiny.policy(seed=1, attention=name)(row).logps_T for name in ("sdpa", "flex"))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_model_with_a_sliding_window_gets_a_dense_mask_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (row,) = packed(tiny.ragged_groups()[3:])
    expected, _ = scores(row, "sdpa")
    for window, is_equal in ((1000, True), (8, False)):  # the first one reaches everything
        policy = tiny.policy(seed=1)
        for layer in policy.model.model.language_model.layers:
            layer.self_attn.sliding_window = window
        close = torch.allclose(policy(row).logps_T, expected, atol=2e-5)
        assert close == is_equal
    assert "sliding window" in caplog.text


def test_a_window_is_counted_within_a_completions_own_text() -> None:
    window = 8
    (both,) = packed(tiny.ragged_groups()[4:5])
    alone = packed(tiny.ragged_groups()[4:5], tokens_per_row=1)
    policy = tiny.policy(seed=1)
    for layer in policy.model.model.language_model.layers:
        layer.self_attn.sliding_window = window
    found = torch.cat([policy(row).logps_T for row in reversed(alone)])
    torch.testing.assert_close(policy(both).logps_T, found, atol=2e-5, rtol=0)


def test_auto_takes_flash_attn_only_where_it_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (False, True):
        monkeypatch.setattr(attention_backends, "find_spec", lambda _, found=installed: found or None)
        assert chosen_backend("auto", "cuda", torch.bfloat16) == ("flash_attn" if installed else "sdpa")
        assert chosen_backend("auto", "cuda", torch.float32) == "sdpa"
        assert chosen_backend("auto", "cpu", torch.bfloat16) == "split"
        assert chosen_backend("flex", "cpu", torch.float32) == "flex"


def test_a_kernel_that_can_not_train_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(attention_backends, "find_spec", lambda _: None)
    for name, reason in {"flash_attn": "is not installed", "flex": "has no backward pass on a CPU"}.items():
        config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), f"model.attention={name}"])
        with pytest.raises(ValueError, match=f"model.attention={name}: .* {reason}"):
            check_backend(config.model.attention)


@pytest.mark.parametrize("has_layout", [False, True])
@pytest.mark.parametrize("unknown", [{"softcap": 50.0}, {"s_aux": torch.zeros(2)}])
def test_what_other_families_add_to_attention_is_refused(unknown: dict[str, Any], has_layout: bool) -> None:
    (row,) = packed(tiny.ragged_groups()[4:5])
    states = [torch.randn(1, 2, len(row.input_ids_N), 8) for _ in range(3)]
    given = {"layout": row.layout if has_layout else None, "scaling": 0.3}
    (name,) = unknown
    attention = partial(shared_prefix_attention, SimpleNamespace(is_causal=True), *states, None)  # pyright: ignore
    assert attention(**given, **{name: None})[0].shape == (1, len(row.input_ids_N), 2, 8)
    with pytest.raises(ValueError, match=f"attention has {name}, which"):
        attention(**given, **unknown)
