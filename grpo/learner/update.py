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

from grpo.config.learner import LossConfig, OptimConfig
from grpo.learner.guards import Outcome
from grpo.learner.launching import pass_dtype, set_up_sharding
from grpo.learner.losses import LOSSES, StepCounts, kl_T
from grpo.learner.optimizers import SPD, make_optimizer, take_start
from grpo.learner.ratios import importance_ratio_T, sampler_correction
from grpo.learner.reference import Reference, SecondCopy, WithoutAdapters
from grpo.packing import PackedRow, padding_row
from grpo.policy.model import Policy, TokenScores, store_trained_only
from grpo.policy.sharding import share_head
from grpo.run.tally import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class Focus:
    """Which tokens the policy loss and the entropy bonus act on."""

    kept_rows: list[Tensor]
    """For each row 1 or 0 per token."""
    num_tokens: float
    """The ones over all processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Behind:
    """What a row's tokens are compared with, fixed before the first update: all of shape (T,)."""

    old_logps_T: Tensor
    """The policy's own, before the update."""
    policy_weight_T: Tensor
    """What the policy loss is multiplied by: the importance weight to the engine, 0 for tokens out of focus."""
    kept_T: Tensor
    reference_logps_T: Tensor | None
    """None without a KL term in the loss."""


class Learner:
    """The policy with its optimizer and, with a KL term, its reference."""

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
        self.policy, self.padding_row = policy, padding_row(policy.family)
        store_trained_only(policy)
        trainable = [weight for weight in policy.parameters() if weight.requires_grad]
        set_up_sharding(accelerator, optim.max_grad_norm)
        optimizer = make_optimizer(trainable, optim, from_zero=policy.has_adapters)
        self.wrapped, self.optimizer = accelerator.prepare(policy, optimizer)
        share_head(policy.head, policy.model.lm_head.weight)
        take_start(self.optimizer.optimizer)
        self.reference = self._make_reference(load_reference) if load_reference is not None else None

    def _make_reference(self, load: Callable[[torch.dtype], Policy]) -> Reference:
        if self.policy.has_adapters:
            return WithoutAdapters(self.policy, self.wrapped)
        # DeepSpeed has made the policy bf16 by now, and FSDP2 does so for each pass. With another precision than the
        # policy's, the divergence of equal weights would not be 0. But one that moves takes steps too small for bf16.
        dtype = None if self.loss.sync_ref_model else pass_dtype(self.accelerator)
        own = load(dtype or self.policy.model.dtype)
        reference = SecondCopy(own, self.accelerator.device, offload=self.loss.reference_offload)
        if self.loss.sync_ref_model:  # a reference that moves is part of a checkpoint
            self.accelerator.register_for_checkpointing(reference.policy)
        return reference

    def update(self, rows: Sequence[PackedRow], counts: StepCounts, step: int, tally: Tally) -> Outcome:
        """One optimizer step per iteration; from the second on, ratios are to the first one's log-probs.

        Where another process has more rows, a padding row is forwarded with zero loss. A loss that is not finite makes
        the gradient so in all processes, which then skip the update together.
        """
        outcome = Outcome()
        self._set_lr(step, tally)
        num_rows = self._most(len(rows))
        padded = [*rows, *[self.padding_row] * (num_rows - len(rows))]
        focus = self._focus(padded, len(rows), counts)
        in_loss = self.loss.beta > 0 and not self.loss.kl_in_reward
        references = self.reference_logps(padded) if in_loss else [None] * num_rows
        behind: list[Behind] = []
        for iteration in range(self.optim.num_iterations if num_rows else 0):
            for index, row in enumerate(padded):
                row = row.to(self.accelerator.device)
                with self._exchange(index == num_rows - 1):
                    scores = self.wrapped(row, entropy_gradient=self.loss.entropy_coef != 0)
                    if index >= len(rows):
                        loss = 0.0 * (scores.logps_T.sum() + scores.entropy_T.sum())
                    else:
                        part = Tally()
                        if iteration == 0:
                            kept_T, reference_T = focus.kept_rows[index], references[index]
                            behind.append(self._behind(row, scores, kept_T, reference_T, part))
                        loss = self._row_loss(row, scores, behind[index], counts, focus.num_tokens, part)
                        if loss.isfinite():
                            tally.take(part)
                        else:
                            outcome.bad_rows.append(rows[index])
                            loss = loss * torch.nan  # an infinite loss may have a gradient that is finite
                    # DDP and DeepSpeed average over processes; the counts are already global.
                    self.accelerator.backward(loss * self.accelerator.num_processes)
            outcome.norms.append(self._step(tally))
        tally.highest("optim/skipped_updates", outcome.num_skipped)
        if self.loss.sync_ref_model and step % self.loss.ref_model_sync_steps == 0:
            assert isinstance(self.reference, SecondCopy)
            self.reference.follow(self.policy.named_weights(), self.loss.ref_model_mixup_alpha)
        return outcome

    def reference_logps(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """The rows' log-probs under the reference, in the precision of the policy's passes; as many passes in
        every process."""
        assert self.reference is not None
        padded = [*rows, *[self.padding_row] * (self._most(len(rows)) - len(rows))]
        with torch.no_grad(), self.accelerator.autocast(), self.reference.ready() as policy:
            return [policy(row.to(self.accelerator.device)).logps_T for row in padded][: len(rows)]

    def _focus(self, rows: Sequence[PackedRow], num_real: int, counts: StepCounts) -> Focus:
        """All tokens, or those of highest entropy among the tokens of all rows of all processes."""
        quantile = self.loss.top_entropy_quantile
        if quantile == 1 or not rows:
            ones = [torch.ones(len(row.target_T), device=self.accelerator.device) for row in rows]
            return Focus(kept_rows=ones, num_tokens=counts.num_tokens)
        with torch.no_grad():  # one pass over all rows: the threshold must not depend on how they are packed
            entropies = [self.wrapped(row.to(self.accelerator.device)).entropy_T for row in rows][:num_real]
        own = torch.cat([torch.zeros(0, device=self.accelerator.device), *entropies])
        padded = self.accelerator.pad_across_processes(own, pad_index=-1)  # entropies are not negative
        everyone = self.accelerator.gather(padded)
        everyone = everyone[everyone >= 0]  # pyright: ignore
        threshold = torch.quantile(everyone, 1 - quantile)
        kept = [(entropy_T >= threshold).float() for entropy_T in entropies]
        return Focus(kept_rows=kept, num_tokens=float((everyone >= threshold).sum()))

    def _behind(
        self, row: PackedRow, scores: TokenScores, kept_T: Tensor, reference_T: Tensor | None, tally: Tally
    ) -> Behind:
        old_logps_T = scores.logps_T.detach()
        _tally_row(row, scores, tally)
        weight_T = kept_T
        if self.loss.vllm_importance_sampling_correction:
            correction = sampler_correction(
                old_logps_T,
                row.sampler_logps_T,
                row.completion_T,
                mode=self.loss.vllm_importance_sampling_mode,
                clip_min=self.loss.vllm_importance_sampling_clip_min,
                clip_max=self.loss.vllm_importance_sampling_clip_max,
            )
            weight_T = kept_T * correction.weight_T
            tally.mean_of("sampler/ratio_mean", correction.ratio_T.sum().item(), len(kept_T))
            tally.highest("sampler/ratio_max", correction.ratio_T.max().item())
            tally.mean_of("sampler/outside_frac", correction.outside_T.sum().item(), len(kept_T))
        return Behind(
            old_logps_T=old_logps_T,
            policy_weight_T=weight_T,
            kept_T=kept_T,
            reference_logps_T=reference_T,
        )

    def _row_loss(
        self,
        row: PackedRow,
        scores: TokenScores,
        behind: Behind,
        counts: StepCounts,
        num_kept_tokens: float,
        tally: Tally,
    ) -> Tensor:
        settings, kind = self.loss, LOSSES[self.loss.type]
        ratio_T = importance_ratio_T(
            scores.logps_T,
            behind.old_logps_T,
            completion_T=row.completion_T,
            lengths_T=row.lengths_T,
            level=settings.level,
        )
        loss_T = kind.token_T(ratio_T, scores.logps_T, row.advantages_T, settings) * behind.policy_weight_T
        if behind.reference_logps_T is not None:
            divergence_T = kl_T(
                scores.logps_T,
                behind.reference_logps_T,
                estimator=settings.kl_estimator,
                ratio_T=ratio_T if settings.use_bias_correction_kl else None,
            )
            loss_T = loss_T + settings.beta * divergence_T
            tally.mean_of("policy/kl", divergence_T.sum().item(), len(divergence_T))
        loss = (kind.weights_T(row.lengths_T, counts) * loss_T).sum()
        if settings.entropy_coef:
            loss = loss - settings.entropy_coef * (scores.entropy_T * behind.kept_T).sum() / num_kept_tokens
        tally.add("loss", loss.item() / self.optim.num_iterations)
        clipped = kind.clipped_T(ratio_T, row.advantages_T, settings)
        tally.mean_of("policy/clip_fraction", clipped.sum().item(), len(clipped))
        return loss

    def _set_lr(self, step: int, tally: Tally) -> None:
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

    def _exchange(self, last: bool) -> Any:
        """Gradients are exchanged between processes in the last backward pass only."""
        self.accelerator.sync_gradients = last
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def _step(self, tally: Tally) -> float:
        """Move the weights; the gradient's norm before clipping. One that is not finite moves nothing."""
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.optim.max_grad_norm)
        norm = 0.0 if norm is None else float(norm)
        if math.isfinite(norm):  # DeepSpeed has made its step by now, or skipped it for the same reason
            tally.highest("optim/grad_norm", norm)
            self.optimizer.step()
            if isinstance(self.optimizer.optimizer, SPD):
                tally.mean_of("optim/projected_frac", self.optimizer.optimizer.projected_frac, 1)
        self.optimizer.zero_grad()
        return norm

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
