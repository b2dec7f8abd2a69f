"""The table of `python -m tests.gpu`: that it can be made anywhere, and what must hold on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from grpo.policy.attention import implementation
from tests.benchmarks.bench_learner import bench_group, bench_policy, rows_of
from tests.gpu.__main__ import agreement, main, num_flops, num_pairs, scores
from tests.support import tiny
from tests.support.learners import packed

SIZE = (200, 4, 16)


@pytest.mark.slow
def test_the_table_can_be_made_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--tiny"])
    shown = capsys.readouterr().out
    assert "to be taken on a GPU" in shown
    for row in (
        "plain, bf16 to fp32",
        "shared, sdpa to fp32",
        "shared, split to fp32",
        "200 + 4 x 16, one per completion",
        "4 x 16, shared",
    ):
        assert row in shown


@pytest.mark.parametrize("shared", [True, False])
def test_the_flops_are_those_that_pytorch_counts(shared: bool) -> None:
    policy = bench_policy()
    rows = rows_of(policy, bench_group(policy, *SIZE), shared=shared)
    with FlopCounterMode(display=False) as counter:
        for row in rows:
            policy(row).logps_T.sum().backward()
    # The head is computed once more in the backward pass, attention in whole rectangles, the patches as one product.
    assert num_flops(policy, rows) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_row_of_several_groups_takes_the_flops_of_each_and_of_their_padding() -> None:
    policy, groups = tiny.policy(), tiny.ragged_groups()
    (together,), alone = packed(groups), [packed([scored])[0] for scored in groups]
    assert num_flops(policy, [together]) == pytest.approx(num_flops(policy, alone))
    pairs = [sum(num_pairs(alone[2], is_padded=flag)) for flag in (True, False)]  # 1, 1 and 4 tokens
    assert pairs[0] - pairs[1] == 2 * (3 * len(groups[2].group.prompt.token_ids) + 10 - 1)


@pytest.mark.gpu
def test_on_a_gpu_each_kernel_is_as_exact_as_plain_rows() -> None:
    device = torch.device("cuda")
    plain, *others = agreement(bench_policy().to(device), device, SIZE)
    for row in others:
        assert float(row[-2]) < 2 * float(plain[-2]) and float(row[-1]) < 2 * float(plain[-1]), row[0]


@pytest.mark.gpu
def test_on_a_gpu_flex_attention_gives_the_gradient_of_sdpa() -> None:
    device, policy = torch.device("cuda"), bench_policy().to("cuda")
    rows = rows_of(policy, bench_group(policy, *SIZE), shared=True)
    found = {}
    for kernel in ("sdpa", "flex"):
        policy.model.model.language_model.config._attn_implementation = implementation(kernel)
        found[kernel] = scores(policy, rows, device, torch.float32)
    torch.testing.assert_close(found["flex"][0], found["sdpa"][0], atol=1e-3, rtol=0)
    assert float((found["flex"][1] - found["sdpa"][1]).norm() / found["sdpa"][1].norm()) < 1e-2
