"""The update: packed rows in, new weights out.

The gradient is that of the whole step's loss, however the step is spread over rows and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from grpo.config import LossConfig, OptimConfig
from grpo.losses import clipped_loss_T, clipped_T, kl_T, token_weights_T
from grpo.packing import PackedRow
from grpo.policy import Policy, TokenScores
from grpo.tally import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """What the loss is divided by: counts over all processes, groups without signal included."""

    num_completions: int
    num_tokens: int


class Learner:
    """The policy with its optimizer and, with a KL term, its frozen start."""

    def __init__(
        self,
        policy: Policy,
        accelerator: Accelerator,
        *,
        loss: LossConfig,
        optim: OptimConfig,
        num_steps: int,
        load_reference: Callable[[torch.dtype], Policy] | None = None,
    ) -> None:
        """load_reference: the frozen start in the given precision; None without a KL term."""
        self.accelerator = accelerator
        self.loss, self.optim, self.num_steps = loss, optim, num_steps
        self.policy = policy
        trainable = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
        set_deepspeed(accelerator, optim.max_grad_norm)
        self.wrapped, self.optimizer = accelerator.prepare(policy, optimizer)
        self.reference: Policy | None = None
        if load_reference is not None:
            # DeepSpeed has made the policy bf16 by now. With another precision than the policy's, the divergence
            # of equal weights would not be 0.
            self.reference = load_reference(policy.model.dtype).requires_grad_(False).eval()
            self.reference.to(accelerator.device)

    def update(
        self, rows: Sequence[PackedRow], padding_row: PackedRow, counts: StepCounts, step: int, tally: Tally
    ) -> None:
        """One optimizer step per iteration; from the second on, ratios are to the first one's log-probs.

        padding_row: forwarded with zero loss where another process has more rows.
        """
        factor = lr_factor(
            step,
            num_steps=self.num_steps,
            warmup_steps=self.optim.warmup_steps,
            schedule=self.optim.schedule,
            min_lr_frac=self.optim.min_lr_frac,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr * factor
        tally.highest("optim/lr", self.optim.lr * factor)
        num_rows = self._most(len(rows))
        if num_rows == 0:
            return
        old_logps: list[Tensor] = []
        for iteration in range(self.optim.num_iterations):
            first = iteration == 0
            for index in range(num_rows):
                is_padding = index >= len(rows)
                row = (padding_row if is_padding else rows[index]).to(self.policy.device)
                with self._exchange(index == num_rows - 1):
                    scores = self.wrapped(row)
                    if first:
                        old_logps.append(scores.logps_T.detach())
                        if not is_padding:
                            _tally_row(row, scores, tally)
                    if is_padding:
                        loss = 0.0 * scores.logps_T.sum()
                    else:
                        loss = self._row_loss(row, scores.logps_T, old_logps[index], counts, tally)
                    # DDP and DeepSpeed average over processes; the counts are already global.
                    self.accelerator.backward(loss * self.accelerator.num_processes)
            self._step(tally)

    def _row_loss(
        self, row: PackedRow, logps_T: Tensor, old_logps_T: Tensor, counts: StepCounts, tally: Tally
    ) -> Tensor:
        clip = {"epsilon": self.loss.epsilon, "epsilon_high": self.loss.epsilon_high}
        loss_T = clipped_loss_T(logps_T, old_logps_T, row.advantages_T, **clip)
        if self.reference is not None:
            with torch.no_grad(), self.accelerator.autocast():  # the precision of the policy's pass
                reference_logps_T = self.reference(row).logps_T
            behind_T = old_logps_T if self.loss.use_bias_correction_kl else None
            divergence_T = kl_T(logps_T, reference_logps_T, behind_T)
            loss_T = loss_T + self.loss.beta * divergence_T
            tally.mean_of("policy/kl", divergence_T.sum().item(), len(divergence_T))
        weights_T = token_weights_T(
            row.lengths_T,
            loss_type=self.loss.type,
            num_completions=counts.num_completions,
            num_tokens=counts.num_tokens,
        )
        loss = (weights_T * loss_T).sum()
        tally.add("loss", loss.item() / self.optim.num_iterations)
        clipped = clipped_T(logps_T, old_logps_T, row.advantages_T, **clip)
        tally.mean_of("policy/clip_fraction", clipped.sum().item(), len(clipped))
        return loss

    def _exchange(self, last: bool) -> Any:
        """Gradients are exchanged between processes in the last backward pass only."""
        self.accelerator.sync_gradients = last
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def _step(self, tally: Tally) -> None:
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.optim.max_grad_norm)
        if norm is not None:
            tally.highest("optim/grad_norm", float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _most(self, count: int) -> int:
        counts = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())  # pyright: ignore[reportAttributeAccessIssue]


def lr_factor(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    schedule: Literal["constant", "cosine"],
    min_lr_frac: float,
) -> float:
    """Share of the learning rate at a step (the first is 1): linear warm-up, then constant or a half cosine."""
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - 1 - warmup_steps) / max(1, num_steps - warmup_steps)
    return min_lr_frac + (1 - min_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))


def _tally_row(row: PackedRow, scores: TokenScores, tally: Tally) -> None:
    """Entropy, and the distance to the engine's log-probs: whether it samples from these weights."""
    gap_T = (scores.logps_T.detach() - row.sampler_logps_T).abs()
    tally.mean_of("policy/entropy", scores.entropy_T.sum().item(), len(gap_T))
    tally.mean_of("sampler/gap_mean", gap_T.sum().item(), len(gap_T))
    tally.highest("sampler/gap_max", gap_T.max().item())
    tally.add("tokens/computed", len(row.input_ids_N))


def check_launch(accelerator: Accelerator, prompts_per_step: int) -> None:
    """Raise ValueError if this update can't run in the processes that were launched."""
    if prompts_per_step % accelerator.num_processes:
        raise ValueError(
            f"optim.prompts_per_step ({prompts_per_step}) must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError("ZeRO-3 is not supported yet: use ZeRO-2 (launch/accelerate/zero2.yaml)")


def set_deepspeed(accelerator: Accelerator, max_grad_norm: float) -> None:
    """DeepSpeed clips by its own config, and wants a batch size although it loads no data here."""
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if plugin is None:
        return
    plugin.deepspeed_config["gradient_clipping"] = max_grad_norm
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
