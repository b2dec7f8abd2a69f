"""The real Learner without a run: one update of the tiny policy, its figures and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grpo.config.learner import LossConfig, OptimConfig
from grpo.groups import ScoredGroup
from grpo.learner.losses import StepCounts, step_counts
from grpo.learner.update import Learner
from grpo.packing import PackedRow, pack, segments_of
from grpo.policy.model import Policy
from grpo.run.metrics import Metrics
from tests.support import tiny
from tests.support.runs import reset_process_state


def make_learner(
    policy: Policy,
    *,
    loss: LossConfig,
    optim: OptimConfig | None = None,
    reference: Policy | None = None,
) -> Any:
    reset_process_state()
    return Learner(
        policy,
        Accelerator(cpu=True, mixed_precision="no"),
        loss=loss,
        optim=optim or OptimConfig(),
        num_steps=10,
        load_reference=(lambda _: reference) if loss.needs_reference and reference is not None else None,
    )


def updated(
    policy: Policy,
    rows: Sequence[PackedRow],
    counts: StepCounts,
    *,
    loss: LossConfig,
    reference: Policy | None = None,
    old_logps: Sequence[Tensor] = (),
) -> dict[str, float]:
    """The figures of an update's passes, which leave their gradient on the policy, and the weights alone.

    old_logps: the rows' under an earlier policy, as from the second iteration on.
    """
    learner = make_learner(policy, loss=loss, reference=reference)
    passes = learner.forward_backward(learner.prepare(rows, counts), old_logps)
    return sum((each.metrics for each in passes), Metrics()).reduced(gather_object)


SHORT = ([3, 11, 1], [7, 9, 5], [2, 2, 14])
LONG = ([30, 28, 20], [40, 35, 30], [25, 22, 45])
"""Lengths of completions, beside which the prompts of about 24 tokens are short: halves of such a group are smaller."""


def text_groups(seed: int = 0, lengths_of: Sequence[list[int]] = SHORT) -> list[ScoredGroup]:
    """Three ragged groups about text alone, the second without signal, whose engine was a little off the policy."""
    policy = tiny.policy(seed=1)
    groups = []
    for i, lengths in enumerate(lengths_of):
        prompt = tiny.prompt(tiny.sample(f"s{i}", question="Which" + " red" * i), None)
        scored = tiny.ragged_group(prompt, lengths, seed=seed + i)
        advantages = (0.0,) * len(lengths) if i == 1 else scored.advantages
        logps_T = policy(packed([scored])[0]).logps_T.detach()
        noise_T = 0.15 * torch.randn(len(logps_T), generator=torch.Generator().manual_seed(i))
        logprobs = (logps_T + noise_T).split(lengths)
        rollouts = tuple(
            replace(rollout, logprobs=tuple(values.tolist()))
            for rollout, values in zip(scored.group.rollouts, logprobs, strict=True)
        )
        group = replace(scored.group, rollouts=rollouts)
        groups.append(replace(scored, group=group, advantages=advantages))
    return groups


def packed(
    groups: Sequence[ScoredGroup],
    *,
    tokens_per_row: int = 10_000,
    drop_flat: bool = False,
    trained: bool = True,
) -> list[PackedRow]:
    segments = segments_of(groups, tokens_per_row=tokens_per_row, drop_flat=drop_flat, trained=trained)
    return pack(segments, tiny.family(), tokens_per_row=tokens_per_row)


def counts_of(groups: Sequence[ScoredGroup]) -> StepCounts:
    return step_counts(groups, max_new_tokens=24)


def moved_policy() -> Policy:
    """A reference near the policy of the tests, but not equal to it."""
    policy = tiny.policy(seed=1)
    with torch.no_grad():
        policy.model.lm_head.weight *= 1.02
    return policy


def overflowing(policy: Policy) -> RemovableHandle:
    """Make the gradient infinite or NaN on its way back, and leave the loss as it is."""

    def spoil(_: nn.Module, __: Any, output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: gradient * torch.inf)

    return policy.model.model.language_model.register_forward_hook(spoil)


def lack_memory(policy: Policy, num_tokens: int, *, way: str = "forward") -> list[int]:
    """Let passes of more tokens lack memory, on their way forward or back; the sizes of the passes that did."""
    failed: list[int] = []
    sizes: list[int] = []

    def lack(num_given: int) -> None:
        if num_given > num_tokens:
            failed.append(num_given)
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.\nAnd more."
            )

    def begin(_: nn.Module, given: tuple[PackedRow]) -> None:
        sizes.append(len(given[0].input_ids_N))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        num_given, hidden = sizes[-1], output.last_hidden_state
        if hidden.requires_grad and way == "forward":
            lack(num_given)
        elif hidden.requires_grad:
            # By then the head has its gradient.
            hidden.register_hook(lambda _: lack(num_given))

    policy.register_forward_pre_hook(begin)
    policy.model.model.language_model.register_forward_hook(after)
    return failed


def gradient_of(policy: Policy) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(w) if w.grad is None else w.grad).flatten()
            for w in policy.parameters()
            if w.requires_grad
        ]
    )
