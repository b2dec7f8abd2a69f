"""The output head in fp32: its products are of the pass's precision and are not rounded to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.policy.model import Head
from tests.support import tiny


def logits(head: Head, hidden_TD: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return head.logits(hidden_TD, torch.zeros(len(hidden_TD), dtype=torch.long))


def test_a_head_in_fp32_keeps_what_bf16_rounds_away() -> None:
    policies = [tiny.policy(fp32_head=flag) for flag in (False, True)]
    weight_VD = policies[0].model.lm_head.weight.detach()
    torch.manual_seed(0)
    hidden_TD = 20 * torch.randn(5, weight_VD.shape[1])
    rounded_TV = F.linear(hidden_TD.bfloat16().double(), weight_VD.bfloat16().double())
    expected_TV = rounded_TV + torch.zeros(rounded_TV.shape[1]).index_fill(
        0, torch.tensor(policies[0].family.suppressed_ids), -100.0
    )
    coarse_TV, found_TV = (logits(policy.head, hidden_TD) for policy in policies)
    assert found_TV.dtype == torch.float32
    torch.testing.assert_close(found_TV.double(), expected_TV, atol=1e-3, rtol=1e-5)
    off = [float((each.double() - expected_TV).abs().max()) for each in (coarse_TV, found_TV)]
    assert off[0] > 100 * off[1]


def test_without_bf16_passes_it_changes_nothing_and_it_has_a_gradient() -> None:
    torch.manual_seed(0)
    found = []
    for flag in (False, True):
        head = tiny.policy(fp32_head=flag).head
        hidden_TD = torch.ones(3, head.output_embeddings().weight.shape[1], requires_grad=True)
        target_T = torch.tensor([1, 2, 3])
        head(hidden_TD, target_T, target_T, entropy_gradient=False).logps_T.sum().backward()
        found.append((head.output_embeddings().weight.grad, hidden_TD.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert float(found[1][0].norm()) > 0
