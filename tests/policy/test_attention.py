"""Every kernel for packed rows gives what PyTorch's public attention gives, and that what plain forwards give
(`test_packing.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from grpo.config.load import load_config
from grpo.packing import PackedRow
from grpo.policy.attention import in_one_call, in_two_parts, shared_prefix_attention
from grpo.policy.attention_backends import (
    FLEX_BLOCK,
    QKV,
    block_mask,
    check_backend,
    chosen_backend,
    sees,
    why_no_flash_attn,
)
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
    prompts = QKV(torch.zeros(0), keys, values)
    weight = torch.randn_like(own.query)
    found, expected = (
        (output, *torch.autograd.grad((output * weight).sum(), states))
        for output in (
            in_two_parts(own, prompts, scaling),
            in_one_call(own, prompts, scaling),
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


def test_flex_attention_gets_the_blocks_that_torch_would_find_with_a_mask_of_row_by_row_size() -> None:
    (row,) = packed(
        [
            tiny.ragged_group(tiny.prompt(tiny.sample("long"), None), [300, 20, 170], seed=0),
            *tiny.ragged_groups(),
        ]
    )
    num_tokens = len(row.input_ids_N)
    assert num_tokens > 6 * FLEX_BLOCK
    found = block_mask(row.layout)
    expected = create_block_mask(
        lambda batch, head, query, key: sees(row.layout, query, key),
        None,
        None,
        num_tokens,
        num_tokens,
        "cpu",
    )
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert int(found.full_kv_num_blocks.sum()) > 0


def test_the_vision_tower_finds_its_chunks_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for lengths makes a GPU wait."""
    policy = tiny.policy(gradient_checkpointing=True).train()
    asked: list[int] = []
    unique = torch.Tensor.unique
    monkeypatch.setattr(torch.Tensor, "unique", lambda self, *given: asked.append(1) or unique(self, *given))
    (row,) = packed(tiny.ragged_groups()[:1])
    policy(row).logps_T.sum().backward()
    # Of windows and of frames: not again in the backward pass, which computes each layer once more.
    assert len(asked) == 2


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


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """A function that installs a module as flash-attn; None: it is not installed."""

    def install(module: Any) -> None:
        why_no_flash_attn.cache_clear()
        monkeypatch.setitem(sys.modules, "flash_attn", module)

    yield install
    why_no_flash_attn.cache_clear()


def test_auto_takes_flash_attn_only_where_it_can_compute(flash_attn: Callable[[Any], None]) -> None:
    for module in (None, SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)):
        flash_attn(module)
        assert chosen_backend("auto", "cuda", torch.bfloat16) == ("sdpa" if module is None else "flash_attn")
        assert chosen_backend("auto", "cuda", torch.float32) == "sdpa"
        assert chosen_backend("auto", "cpu", torch.bfloat16) == "split"
        assert chosen_backend("flex", "cpu", torch.float32) == "flex"


def test_flash_attn_that_was_built_for_another_torch_is_refused_with_what_the_loader_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2E')")
    monkeypatch.syspath_prepend(tmp_path)
    why_no_flash_attn.cache_clear()
    with pytest.raises(ValueError, match="flash_attn: flash-attn does not load .undefined symbol: _ZN3c10"):
        check_backend("flash_attn")
    assert chosen_backend("auto", "cuda", torch.bfloat16) == "sdpa"
    why_no_flash_attn.cache_clear()


def test_a_kernel_that_can_not_train_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, flash_attn: Callable[[Any], None]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flash_attn(None)
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
