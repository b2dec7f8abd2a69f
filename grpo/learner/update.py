"""The update: packed rows in, new weights out. Read `update`, then `forward_backward`, then `losses.row_loss`.

The gradient is that of the whole step's loss, however the step is spread over rows and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from grpo.config.learner import LossConfig, OptimConfig
from grpo.learner.launching import pass_dtype, set_up_sharding
from grpo.learner.losses import StepCounts, mean_at, row_loss, sampling_metrics
from grpo.learner.optimizers import SPD, lr_factor, make_optimizer, take_start
from grpo.learner.passes import RowInputs, RowPass, RowTooLarge, whole_pass, why_not_in_halves
from grpo.learner.reference import Reference, SecondCopy, WithoutAdapters
from grpo.packing import PackedRow, by_completion, padding_row
from grpo.policy.model import Policy, TokenScores, store_trained_only
from grpo.policy.sequence_split import ALONE, SequenceSplit
from grpo.policy.sharding import share_head
from grpo.run.checkpoint import keep_weights
from grpo.run.metrics import Mean, Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSelection:
    """The tokens that the policy loss and the entropy bonus act on; by default all."""

    kept_rows: Sequence[Tensor]
    """A mask (T,) for each row: 1 for a token that is acted on, else 0."""
    num_tokens: float
    """The number of ones in the masks of all processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateInputs:
    """The inputs that all updates of a step share."""

    rows: Sequence[PackedRow]
    num_passes: int
    """The passes that each process makes: one for each row of the process with most, and DDP's sum."""
    counts: StepCounts
    watched: Sequence[PackedRow]
    """The rows of completions that are not trained on."""
    reference_logps: Sequence[Tensor | None]
    """The reference's log-probs of each row, (T,); None without a KL term in the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """The result of a step's updates."""

    metrics: Metrics = Metrics()
    norms: Sequence[float] = ()
    """The gradient norm of each update before clipping; an update whose norm is not finite was skipped."""
    bad_rows: Sequence[PackedRow] = ()
    """This process's rows whose loss was not finite."""
    logps: Mapping[bytes, Sequence[float]] = field(default_factory=dict)
    """The policy's log-probs of this process's completions before the first update, by `groups.completion_key`."""

    @property
    def num_skipped(self) -> int:
        return sum(not math.isfinite(norm) for norm in self.norms)


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
        split: SequenceSplit = ALONE,
    ) -> None:
        """Prepare the policy; `load_reference` loads the frozen start in a given precision, None without a KL term.

        split: the processes that compute each row together, and are all given the same rows.
        """
        self.accelerator, self.split = accelerator, split
        self.loss, self.optim, self.num_steps = loss, optim, num_steps
        self.policy, self.padding_row = policy, padding_row(policy.family)
        store_trained_only(policy)
        trainable = [weight for weight in policy.parameters() if weight.requires_grad]
        set_up_sharding(accelerator, optim.max_grad_norm)
        optimizer = make_optimizer(trainable, optim, from_zero=policy.has_adapters, rows=policy.new_rows)
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
        # A reference that moves is part of a checkpoint.
        if self.loss.sync_ref_model:
            keep_weights(self.accelerator, "reference", reference.policy)
        return reference

    def update(
        self,
        rows: Sequence[PackedRow],
        counts: StepCounts,
        step: int,
        *,
        watched: Sequence[PackedRow] = (),
    ) -> UpdateResult:
        """Move the weights `num_iterations` times, each time by the gradient of all rows.

        watched: the rows of the step's other completions, which count in what is said about the policy.
        """
        self.policy.expect([*watched, *rows], self.split)
        of_watched, watched_logps = self._watch(watched)
        metrics = self._set_lr(step) + of_watched
        inputs = self.prepare(rows, counts, watched)
        passes, norms, bad_rows = [], [], []
        for _ in range(self.optim.num_iterations if inputs.num_passes else 0):
            # From the second iteration on, ratios are to the log-probs of the first one.
            passes = self.forward_backward(inputs, [each.old_logps_T for each in passes])
            norm, of_step = self.optimizer_step()
            metrics = sum((each.metrics for each in passes), metrics) + of_step
            norms.append(norm)
            bad_rows += [row for row, each in zip(rows, passes, strict=True) if not each.is_finite]
        if self.loss.sync_ref_model and step % self.loss.ref_model_sync_steps == 0:
            assert isinstance(self.reference, SecondCopy)
            self.reference.follow(self.policy.named_weights(), self.loss.ref_model_mixup_alpha)
        self.policy.uploads.clear(step)
        logps = [each.old_logps_T for each in passes] + watched_logps
        seen = by_completion(zip([*rows, *watched], logps, strict=True))
        result = UpdateResult(norms=norms, bad_rows=bad_rows, logps=seen)
        metrics += Metrics(maxima={"optim/skipped_updates": result.num_skipped})
        if not self.split.leads:
            # Another process says the same of the same rows.
            return UpdateResult(norms=norms, metrics=Metrics(maxima=metrics.maxima))
        return replace(result, metrics=metrics)

    def prepare(
        self, rows: Sequence[PackedRow], counts: StepCounts, watched: Sequence[PackedRow] = ()
    ) -> UpdateInputs:
        """Return the rows with what stays the same in all updates of a step."""
        has_kl_term = self.loss.beta > 0 and not self.loss.kl_in_reward
        num_passes = len(self._padded(rows))
        # A pass of padding for DDP's exchange of gradients: each row's can be made again by one process alone then.
        is_ddp = self.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        if num_passes and is_ddp and self.split.size == 1:
            num_passes += 1
        return UpdateInputs(
            rows=rows,
            num_passes=num_passes,
            counts=counts,
            watched=watched,
            reference_logps=self.reference_logps(rows) if has_kl_term else [None] * len(rows),
        )

    def forward_backward(self, inputs: UpdateInputs, old_logps: Sequence[Tensor] = ()) -> list[RowPass]:
        """Leave the gradient of the step's loss, over all rows of all processes, on the weights.

        old_logps: each row's log-probs before the step's first update; empty in the first one, whose own are used.
        """
        selection, halved = self._select_tokens(inputs), set[int]()
        while True:
            try:
                return self._passes(inputs, selection, old_logps, halved)
            except RowTooLarge as error:
                halved = self._to_halve(inputs, error, halved)
            # Of the passes that have ended, and in part of the one that has not, the gradient is there.
            self.optimizer.optimizer.zero_grad()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()

    def _passes(
        self,
        inputs: UpdateInputs,
        selection: TokenSelection,
        old_logps: Sequence[Tensor],
        halved: Set[int],
    ) -> list[RowPass]:
        """Make the passes of all rows, of which some are made in two halves; raise RowTooLarge for lack of memory."""
        passes: list[RowPass] = []
        for index in range(inputs.num_passes):
            last = index == inputs.num_passes - 1
            if index < len(inputs.rows):
                whole = RowInputs(
                    row=inputs.rows[index],
                    kept_T=selection.kept_rows[index],
                    old_logps_T=old_logps[index] if old_logps else None,
                    reference_logps_T=inputs.reference_logps[index],
                )
                parts = whole.halves(self.policy.family) if index in halved else [whole]
                found: list[RowPass] = []
                for part in parts:
                    with self._exchange(last=last and part is parts[-1]):
                        found.append(self._fitting_pass(index, part, inputs.counts, selection.num_tokens))
                passes.append(whole_pass(found))
            else:
                with self._exchange(last=last):
                    self._padding_pass()
        return passes

    def _to_halve(self, inputs: UpdateInputs, error: RowTooLarge, halved: Set[int]) -> set[int]:
        """Return the rows to split since one was too large, those that are not smaller; else raise RuntimeError."""
        row, kind, size = inputs.rows[error.index], self.accelerator.distributed_type, self.split.size
        num_tokens = len(row.input_ids_N)
        # Only passes that exchange nothing can be made anew by a process alone.
        if size > 1:
            why = "the processes that compute it together wait for each other"
        elif kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            why = f"with {kind.value} it can't be made in two halves"
        else:
            why = why_not_in_halves(row, self.policy.family, was_halved=error.index in halved)
        if not why:
            return {index for index, each in enumerate(inputs.rows) if len(each.input_ids_N) >= num_tokens}
        more = f"raise optim.sequence_parallel_size={size}, " if size > 1 else ""
        raise RuntimeError(
            f"out of memory: the pass of a row of {num_tokens} tokens is too large, and {why}; {more}lower "
            f"optim.tokens_per_row={self.optim.tokens_per_row} or the prompts' and completions' lengths ({error})"
        )

    def optimizer_step(self) -> tuple[float, Metrics]:
        """Move the weights by their gradient, unless it is not finite; return its norm before clipping, and figures."""
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.optim.max_grad_norm)
        norm, metrics = 0.0 if norm is None else float(norm), Metrics()
        # DeepSpeed has made its step by now, or skipped it for the same reason.
        if math.isfinite(norm):
            self.optimizer.step()
            spd = self.optimizer.optimizer
            projected = {"optim/projected_frac": Mean(spd.projected_frac, 1)} if isinstance(spd, SPD) else {}
            metrics = Metrics(maxima={"optim/grad_norm": norm}, means=projected)
        self.optimizer.zero_grad()
        return norm, metrics

    def reference_logps(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Return the rows' log-probs under the reference, each (T,), in the precision of the policy's passes."""
        assert self.reference is not None
        self.policy.expect(rows, self.split)
        device, padded = self.accelerator.device, self._padded(rows)
        with torch.no_grad(), self.accelerator.autocast(), self.reference.ready() as policy:
            return [policy(row.to(device), split=self.split).logps_T for row in padded][: len(rows)]

    def reference_logps_of_own(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Return what `reference_logps` does, of rows that this process alone has, also under a split."""
        return self._of_own(rows, self.reference_logps)

    def logps_of_own(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Return the policy's log-probs, each (T,), of rows that this process alone has; all processes call it."""
        return self._of_own(rows, lambda everyone: [scores.logps_T for scores in self._scores_only(everyone)])

    def _of_own(
        self, rows: Sequence[PackedRow], read: Callable[[Sequence[PackedRow]], list[Tensor]]
    ) -> list[Tensor]:
        """Return what is read of own rows, in passes that the processes of a split make together."""
        everyone = self.split.shared([rows], self.accelerator.device)
        logps = read([row for own in everyone for row in own])
        start = sum(map(len, everyone[: self.split.rank]))
        if self.split.size > 1:
            # The rows of others came as copies, whose clips no later pass asks for.
            self.policy.uploads.clear(0)
        return logps[start : start + len(rows)]

    def _padded(self, rows: Sequence[PackedRow]) -> list[PackedRow]:
        """Return the rows, then padding rows up to the number of rows of the process that has most."""
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=self.accelerator.device))
        most = int(counts.max())  # pyright: ignore[reportAttributeAccessIssue]
        return [*rows, *[self.padding_row] * (most - len(rows))]

    def _watch(self, rows: Sequence[PackedRow]) -> tuple[Metrics, list[Tensor]]:
        """Return the figures and the log-probs of rows that are not trained on. No update clips their ratios."""
        device, found = self.accelerator.device, Metrics()
        read = self._scores_only(rows)
        for row, scores in zip([row.to(device) for row in rows], read, strict=True):
            num_seen = mean_at(self.loss.level, scores.logps_T, row.lengths_T).count
            clipped = Mean(0.0, num_seen * self.optim.num_iterations)
            found += Metrics(means={"policy/clip_fraction": clipped})
            found += sampling_metrics(row, scores, self.loss)
        return found, [scores.logps_T for scores in read]

    def _scores_only(self, rows: Sequence[PackedRow]) -> list[TokenScores]:
        """Return the scores of rows without a gradient, in as many passes as the process with most rows makes."""
        with torch.no_grad():
            return [self._scores(row.to(self.accelerator.device)) for row in self._padded(rows)][: len(rows)]

    def _select_tokens(self, inputs: UpdateInputs) -> TokenSelection:
        """Select all tokens of the rows, or those of highest entropy among the step's, flat groups included.

        The entropies are those of the current weights, as in trl: each update selects anew.
        """
        quantile, device = self.loss.top_entropy_quantile, self.accelerator.device
        if quantile == 1 or not inputs.num_passes:
            ones = [torch.ones(len(row.target_T), device=device) for row in inputs.rows]
            return TokenSelection(kept_rows=ones, num_tokens=inputs.counts.num_tokens)
        # One pass over all rows first: the threshold must not depend on how they are packed.
        entropies = [scores.entropy_T for scores in self._scores_only(inputs.rows)]
        # Completions without an advantage count nowhere in the loss.
        others = [
            scores.entropy_T[~row.advantages_T.isnan().to(device)]
            for row, scores in zip(inputs.watched, self._scores_only(inputs.watched), strict=True)
        ]
        counted = [*entropies, *others] if self.split.leads else []
        own = torch.cat([torch.zeros(0, device=device), *counted])
        # Processes have different numbers of tokens; -1 fills up, since no entropy is negative.
        everyone = self.accelerator.gather(self.accelerator.pad_across_processes(own, pad_index=-1))
        everyone = everyone[everyone >= 0]  # pyright: ignore
        threshold = torch.quantile(everyone, 1 - quantile)
        kept = [(entropy_T >= threshold).float() for entropy_T in entropies]
        return TokenSelection(kept_rows=kept, num_tokens=float((everyone >= threshold).sum()))

    def _fitting_pass(
        self, index: int, inputs: RowInputs, counts: StepCounts, num_kept_tokens: float
    ) -> RowPass:
        """Make a row's pass; raise RowTooLarge, which holds no tensor of the pass, for lack of memory."""
        try:
            return self._row_pass(inputs, counts, num_kept_tokens)
        except torch.OutOfMemoryError as error:
            said = str(error).partition("\n")[0]
        raise RowTooLarge(index, said)

    def _row_pass(self, inputs: RowInputs, counts: StepCounts, num_kept_tokens: float) -> RowPass:
        """Leave a row's gradient on the weights."""
        row = inputs.row.to(self.accelerator.device)
        scores = self._scores(row)
        before_T = scores.logps_T.detach() if inputs.old_logps_T is None else inputs.old_logps_T
        loss, metrics = row_loss(
            row,
            scores,
            self.loss,
            counts,
            old_logps_T=before_T,
            kept_T=inputs.kept_T,
            num_kept_tokens=num_kept_tokens,
            reference_logps_T=inputs.reference_logps_T,
        )
        if not loss.isfinite():
            # An infinite loss may have a finite gradient. NaN reaches all processes when they exchange gradients, and
            # all skip the update together.
            self._backward(loss * torch.nan)
            return RowPass(old_logps_T=before_T, is_finite=False, metrics=Metrics())
        self._backward(loss)
        # With one update all ratios are 1, and this is the mean of minus the advantages: it says nothing of progress.
        metrics += Metrics(sums={"loss": loss.item() / self.optim.num_iterations})
        if inputs.old_logps_T is None:
            metrics += sampling_metrics(row, scores, self.loss)
        return RowPass(old_logps_T=before_T, is_finite=True, metrics=metrics)

    def _padding_pass(self) -> None:
        """Make a pass with zero loss, since the passes of other processes wait for this one's weights and gradients."""
        scores = self._scores(self.padding_row.to(self.accelerator.device))
        self._backward(0.0 * (scores.logps_T.sum() + scores.entropy_T.sum()))

    def _scores(self, row: PackedRow) -> TokenScores:
        return self.wrapped(row, entropy_gradient=self.loss.entropy_coef != 0, split=self.split)

    def _backward(self, loss: Tensor) -> None:
        # DDP and DeepSpeed average over processes; the counts in the loss are already global. Processes that share a
        # row have a part of its gradient each.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which gradients are exchanged between processes in the last backward pass only.

        FSDP2 exchanges them in each: otherwise it would keep whole gradients of all weights until the last, in fp32.
        """
        self.accelerator.sync_gradients = last
        waits = not last and not self.accelerator.is_fsdp2
        return self.accelerator.no_sync(self.wrapped) if waits else nullcontext()

    def _set_lr(self, step: int) -> Metrics:
        factor = lr_factor(
            step,
            num_steps=self.num_steps,
            warmup_steps=self.optim.warmup_steps,
            schedule=self.optim.schedule,
            min_lr_frac=self.optim.min_lr_frac,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr * factor
        return Metrics(maxima={"optim/lr": self.optim.lr * factor})
