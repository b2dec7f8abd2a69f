"""Every kernel for packed rows gives what the two calls give, and these what plain forwards give (test_packing)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo import attention_backends
from grpo.attention_backends import check_backend, chosen_backend
from grpo.config import load_config
from grpo.packing import PackedRow
from tests import tiny
from tests.learners import gradient_of, packed


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


def test_flash_attn_is_asked_for_what_the_two_calls_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    (row,) = packed(tiny.ragged_groups()[3:])
    assert len(row.layout.blocks) > 1
    (found, gradient), (expected, expected_gradient) = scores(row, "flash_attn"), scores(row, "sdpa")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-4


@torch.no_grad()
def test_flex_attention_gives_what_the_two_calls_give() -> None:
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
        assert chosen_backend("auto", "cpu", torch.bfloat16) == "sdpa"
        assert chosen_backend("flex", "cpu", torch.float32) == "flex"


def test_a_kernel_that_can_not_train_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(attention_backends, "find_spec", lambda _: None)
    for name, reason in {"flash_attn": "is not installed", "flex": "has no backward pass on a CPU"}.items():
        config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), f"model.attention={name}"])
        with pytest.raises(ValueError, match=f"model.attention={name}: .* {reason}"):
            check_backend(config.model.attention)
