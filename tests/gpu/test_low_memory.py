"""What only a GPU can show: offloading frees memory, and 4 bits and 8 bits work where passes run in bf16."""

from __future__ import annotations

import pytest
import torch

from grpo.config.learner import OptimConfig
from grpo.learner.optimizers import make_optimizer
from grpo.policy.adapters import is_adapter
from grpo.policy.model import Policy
from tests.support import tiny
from tests.support.learners import gradient_of, packed

pytestmark = pytest.mark.gpu


def held_and_gradient(*, offloading: bool) -> tuple[int, torch.Tensor]:
    policy = tiny.policy(seed=1, gradient_checkpointing=True, activation_offloading=offloading)
    policy = policy.train().to("cuda")
    row = packed(tiny.ragged_groups())[0].to(policy.device)
    scores = policy(row)
    held = torch.cuda.memory_allocated()
    (scores.logps_T * row.advantages_T).sum().backward()
    return held, gradient_of(policy).cpu()


def test_offloaded_activations_leave_the_gpu_and_give_the_same_gradient() -> None:
    (whole, expected), (less, found) = (held_and_gradient(offloading=each) for each in (False, True))
    assert less < whole
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_a_policy_of_4_bits_trains_in_bf16_and_sends_what_it_computes_with() -> None:
    pytest.importorskip("bitsandbytes")
    device = torch.device("cuda")
    family = tiny.family()
    policy = Policy(
        family.load_model(torch.bfloat16, in_4bit_on=device), family, temperature=1.0, lora=tiny.LORA
    ).train()
    adapters = {name: weight for name, weight in policy.named_parameters() if is_adapter(name)}
    assert {weight.device.type for weight in adapters.values()} == {"cuda"}
    row = packed(tiny.ragged_groups())[0].to(policy.device)
    optimizer = make_optimizer(
        [*adapters.values()], OptimConfig(optimizer="adamw_8bit", lr=1e-2), from_zero=True
    )
    losses = []
    for _ in range(5):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = -policy(row).logps_T.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sent = Policy(family.load_model(torch.bfloat16), family, temperature=1.0).to(device)
    weights = {name: weight.bfloat16() for name, weight in policy.named_weights()}
    left_out = sent.model.load_state_dict(weights, strict=False)
    assert left_out == (["lm_head.weight"], [])  # tied: it is the embedding
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        gap_T = (sent(row).logps_T - policy(row).logps_T).abs()
    assert float(gap_T.mean()) < 0.05
