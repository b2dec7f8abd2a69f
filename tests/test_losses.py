"""Losses by hand, and against trl's GRPOTrainer on the same numbers."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

from grpo.families import Qwen25VL
from grpo.groups import ScoredGroup
from grpo.losses import clipped_loss_T, clipped_T, kl_T, token_weights_T
from grpo.packing import pack
from grpo.policy import Policy
from tests import tiny


def test_the_clip_takes_the_pessimistic_side() -> None:
    # ratios 1.5 and 0.5; advantage +1: min(1.5, 1.28) and min(0.5, 0.8); advantage -1: -1.5 and -0.8
    logps = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    clip = {"epsilon": 0.2, "epsilon_high": 0.28}
    loss = clipped_loss_T(logps, torch.zeros(4), advantages, **clip)
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    assert clipped_T(logps, torch.zeros(4), advantages, **clip).tolist() == [True, False, False, True]


def test_a_clipped_token_has_no_gradient() -> None:
    logps = torch.tensor([1.5, 1.2]).log().requires_grad_()
    clipped_loss_T(logps, torch.zeros(2), torch.ones(2), epsilon=0.2, epsilon_high=0.28).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == pytest.approx([0.0, -1.2])


def test_kl_is_zero_at_equality_and_positive_elsewhere() -> None:
    # exp(0.5) - 0.5 - 1 = 0.14872
    assert kl_T(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -0.5])).tolist() == pytest.approx(
        [0.0, 0.14872], abs=1e-5
    )


def text_groups() -> list[ScoredGroup]:
    """Two groups of three about text alone, with prompts and completions of ragged length."""
    prompts = [tiny.prompt(tiny.sample(f"s{i}", question="Which" + " red" * i), None) for i in range(2)]
    return [
        tiny.ragged_group(prompt, lengths, seed=i)
        for i, (prompt, lengths) in enumerate(zip(prompts, ([3, 11, 1], [7, 9, 5]), strict=True))
    ]


class EveryTokenSampled(Qwen25VL):
    """trl suppresses no token, and its fused head gives no logits to change."""

    suppressed_ids = ()  # pyright: ignore[reportAssignmentType]


def plain_policy() -> Policy:
    policy = tiny.policy(seed=1)
    policy.family = EveryTokenSampled(**vars(policy.family))
    return policy


def our_loss(
    groups: list[ScoredGroup],
    old_B: list[Tensor] | None,
    reference: Policy,
    *,
    loss_type: str,
    beta: float,
    correct_kl: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of one packed row, and its gradient."""
    policy = plain_policy()
    (row,) = pack(
        groups,
        tokens_per_row=10_000,
        positions=policy.family.positions,
        vision_token_id=policy.family.vision_token_id,
    )
    logps_T = policy(row).logps_T
    old_T = torch.cat(old_B) if old_B is not None else logps_T.detach()
    loss_T = clipped_loss_T(logps_T, old_T, row.advantages_T, epsilon=0.2, epsilon_high=0.28)
    behind_T = old_T if correct_kl else None
    loss_T = loss_T + beta * kl_T(logps_T, reference(row).logps_T.detach(), behind_T)
    lengths = [len(r.token_ids) for scored in groups for r in scored.group.rollouts]
    weights_T = token_weights_T(
        row.lengths_T,
        loss_type=loss_type,  # pyright: ignore[reportArgumentType]
        num_completions=len(lengths),
        num_tokens=sum(lengths),
    )
    loss = (weights_T * loss_T).sum()
    loss.backward()
    return loss.detach(), language_gradient(policy.model)


def trl_loss(
    groups: list[ScoredGroup],
    old_B: list[Tensor] | None,
    reference_B: list[Tensor],
    tmp_path: Path,
    *,
    loss_type: str,
    beta: float,
    correct_kl: bool,
) -> tuple[Tensor, Tensor]:
    """The same from trl's GRPOTrainer, with one padded row per completion."""
    model = plain_policy().model
    model.model.language_model.config._attn_implementation = "sdpa"
    args = GRPOConfig(
        output_dir=str(tmp_path),
        loss_type=loss_type,
        beta=beta,
        use_bias_correction_kl=correct_kl,
        epsilon=0.2,
        epsilon_high=0.28,
        num_generations=3,
        per_device_train_batch_size=6,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=tiny.family().processor.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    pairs = [(scored.group.prompt, rollout) for scored in groups for rollout in scored.group.rollouts]
    prompt_ids, prompt_mask = padded([torch.tensor(prompt.token_ids) for prompt, _ in pairs], left=True)
    completion_ids, completion_mask = padded([torch.tensor(rollout.token_ids) for _, rollout in pairs])
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([a for scored in groups for a in scored.advantages]),
        "num_items_in_batch": completion_mask.sum(),
        "ref_per_token_logps": padded(reference_B)[0],
    } | ({"old_per_token_logps": padded(old_B)[0]} if old_B is not None else {})
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), language_gradient(model)


def padded(values: list[Tensor], *, left: bool = False) -> tuple[Tensor, Tensor]:
    side = "left" if left else "right"
    ones = [torch.ones(len(value), dtype=torch.long) for value in values]
    return tuple(pad_sequence(x, batch_first=True, padding_side=side) for x in (values, ones))  # pyright: ignore


def language_gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [w.grad.flatten() for n, w in model.named_parameters() if "visual" not in n and w.grad is not None]
    )


@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize(("beta", "correct_kl"), [(0.0, False), (0.04, False), (0.04, True)])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_loss_and_gradient_equal_trls(
    loss_type: str, beta: float, correct_kl: bool, with_old: bool, tmp_path: Path
) -> None:
    groups = text_groups()
    groups.sort(key=lambda scored: len(scored.group.prompt.token_ids))  # the order of a packed row
    lengths = [len(r.token_ids) for scored in groups for r in scored.group.rollouts]
    reference = plain_policy()
    with torch.no_grad():  # near enough that exp(difference) does not blow up fp32's rounding
        reference.model.lm_head.weight *= 1.02
    (row,) = pack(
        groups,
        tokens_per_row=10_000,
        positions=reference.family.positions,
        vision_token_id=reference.family.vision_token_id,
    )
    start_T = plain_policy()(row).logps_T.detach()
    noise_T = 0.5 * torch.randn(len(start_T), generator=torch.Generator().manual_seed(0))
    old_B = list((start_T + noise_T).split(lengths)) if with_old else None
    reference_B = list(reference(row).logps_T.detach().split(lengths))
    loss, gradient = our_loss(groups, old_B, reference, loss_type=loss_type, beta=beta, correct_kl=correct_kl)
    expected, expected_gradient = trl_loss(
        groups, old_B, reference_B, tmp_path, loss_type=loss_type, beta=beta, correct_kl=correct_kl
    )
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)  # fp32; log-probs differ by 1e-6
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-4
