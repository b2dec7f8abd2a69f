"""Weights of 4 bits under adapters (QLoRA) and AdamW with moments of 8 bits, through bitsandbytes, on any device."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grpo.config.learner import OptimConfig
from grpo.learner.optimizers import make_optimizer
from grpo.policy.adapters import is_adapter
from grpo.policy.model import Policy
from grpo.run.final_model import save_final
from tests.support import tiny
from tests.support.learners import packed
from tests.support.runs import repeatable, run, weights
from tests.test_packing import by_completion, plain_logps

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def policy() -> Policy:
    family = tiny.family()
    made = Policy(
        family.load_model(torch.float32, in_4bit_on=torch.device("cpu")),
        family,
        temperature=1.0,
        lora=tiny.LORA,
    )
    tiny.stir({n: w for n, w in made.named_parameters() if is_adapter(n)}, 3)
    return made


def logps(policy: Policy) -> Tensor:
    (row,) = packed(tiny.ragged_groups())
    with torch.no_grad():
        return policy(row).logps_T


def test_the_language_models_linear_layers_have_4_bits(policy: Policy) -> None:
    low = {name for name, weight in policy.model.named_parameters() if hasattr(weight, "quant_state")}
    linear = {
        f"{name}.weight"
        for name, module in policy.model.named_modules()
        if isinstance(module, nn.Linear) and "language_model" in name and "lora" not in name
    }
    assert low == linear and len(low) == 4 * 7


def test_the_layers_of_4_bits_compute_in_the_precision_that_is_asked_for() -> None:
    model = tiny.family().load_model(torch.bfloat16, in_4bit_on=torch.device("cpu"))
    layer: Any = model.model.language_model.layers[0].mlp.up_proj
    assert model.dtype == model.model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert layer.compute_dtype == torch.bfloat16 and not layer.support_avx512bf16_for_cpu
    assert layer.weight.quant_type == "nf4" and layer.weight.compress_statistics


def test_a_head_of_its_own_keeps_its_precision() -> None:
    with tiny.of_family("qwen3_vl_untied"):
        model: Any = tiny.family().load_model(torch.float32, in_4bit_on=torch.device("cpu"))
    assert model.lm_head.weight.dtype == torch.float32


def test_packed_log_probs_equal_one_forward_per_completion(policy: Policy) -> None:
    groups = tiny.ragged_groups()
    implementations = [part.config._attn_implementation for part in parts(policy)]
    with torch.no_grad():
        found = {
            k: v
            for row in packed(groups, tokens_per_row=600)
            for k, v in by_completion(row, policy(row).logps_T).items()
        }
        expected = plain_logps(policy, groups)
    for part, implementation in zip(parts(policy), implementations, strict=True):
        part.config._attn_implementation = implementation
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 1e-4


def parts(policy: Policy) -> list[Any]:
    return [policy.model.model.language_model, policy.model.model.visual]


def test_what_is_sent_and_stored_is_the_policy_that_trains(policy: Policy, tmp_path: Path) -> None:
    plain = tiny.policy()
    left_out = plain.model.load_state_dict(dict(policy.named_weights()), strict=False)
    assert left_out == (["lm_head.weight"], [])  # tied: it is the embedding
    torch.testing.assert_close(logps(plain), logps(policy), atol=1e-4, rtol=0)
    start = dict(tiny.policy().named_weights())
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(dict(policy.named_weights())[name], start[name], atol=1e-3)  # rounded to 4 bits
    save_final(tmp_path / "final", policy, dtype=torch.float32)
    assert "quantization_config" not in (tmp_path / "final" / "config.json").read_text()
    family = replace(tiny.family(), path=str(tmp_path / "final"))
    stored = Policy(family.load_model(torch.float32), family, temperature=1.0)
    torch.testing.assert_close(logps(stored), logps(policy), atol=1e-4, rtol=0)


def test_moments_of_8_bits_lead_where_those_of_32_do() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 128, generator=generator)
    ways = []
    for name in ("adamw", "adamw_8bit"):
        weight = nn.Parameter(torch.zeros_like(target))
        optim = OptimConfig(optimizer=name, lr=1e-2, weight_decay=0.1)  # pyright: ignore
        optimizer = make_optimizer([weight], optim, from_zero=False)
        for _ in range(30):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        ways.append(weight.detach())
    low = next(iter(optimizer.state.values()))
    assert low["state1"].dtype == low["state2"].dtype == torch.uint8
    assert not torch.equal(*ways)
    assert float((ways[0] - ways[1]).norm() / ways[0].norm()) < 0.1  # 4 % of the way


OVERRIDES = [
    "model.lora.r=32",  # from 4,096 weights on the moments have 8 bits
    "model.load_in_4bit=true",
    "optim.optimizer=adamw_8bit",
    "optim.lr=1e-3",
    "optim.warmup_steps=0",
]


def test_a_run_samples_what_it_trains_and_resumes(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows = run(folder, clips, *OVERRIDES)
    assert all(0 < row["sampler/gap_max"] < 1e-3 for row in rows[1:])
    end = weights(folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    assert repeatable(run(folder, clips, *OVERRIDES)) == repeatable(rows)
    assert all(torch.equal(weight, end[name]) for name, weight in weights(folder).items())
