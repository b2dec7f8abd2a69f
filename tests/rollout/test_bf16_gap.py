"""vLLM and the learner in bf16, as on a GPU: how far their log-probs are apart, with a head in fp32 and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from grpo.config.load import load_config
from grpo.groups import ScoredGroup
from grpo.packing import PackedRow
from grpo.policy.model import Policy
from grpo.startup import assembly
from grpo.startup.assembly import max_gap
from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, prompts
from tests.support import tiny
from tests.support.learners import packed


def mean_gap(policy: Policy, rows: Sequence[PackedRow]) -> float:
    """The mean difference of log-probs over all tokens, with passes as a GPU makes them."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        gaps = [(policy(row).logps_T - row.sampler_logps_T).abs() for row in rows]
    return float(torch.cat(gaps).mean())


@pytest.mark.slow
def test_in_bf16_an_engine_with_an_fp32_head_is_near_the_learner_that_has_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    demo = str(tiny.ROOT / "configs" / "demo.yaml")
    config = load_config([demo, "model.cast_lm_head_to_fp32=true", "rollout.max_model_tokens=2048"])
    # A run in bf16 rounds a patch's seconds as vLLM does.
    family = replace(tiny.family(), seconds_dtype=torch.bfloat16)
    monkeypatch.setattr(tiny, "family", lambda: family)
    policies = [tiny.policy(temperature=TEMPERATURE, fp32_head=flag) for flag in (True, False)]
    monkeypatch.setattr(assembly, "compute_dtype", lambda: torch.bfloat16)
    engine = assembly.build_engine(config, SimpleNamespace(device="cpu", num_processes=1), policies[0])  # pyright: ignore
    try:
        engine.sync()
        groups = engine.generate(prompts(), SAMPLING, SEEDS)
    finally:
        engine.close()
    ones = [ScoredGroup(group=group, table=tiny.table((1.0,) * 4), advantages=(1.0,) * 4) for group in groups]
    rows = packed(ones, tokens_per_row=1500)
    both, only_engine = (mean_gap(policy, rows) for policy in policies)
    # Far within the limit that stops a run, and nearer than with products that are rounded to bf16.
    assert 0 < both < only_engine < max_gap(None, torch.bfloat16) / 2
    print(f"mean gap in bf16: {both:.2g} with fp32 heads, {only_engine:.2g} with the engine's alone")
