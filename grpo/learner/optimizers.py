"""Optimizers and their learning rate, and AdamW variants that keep weights near their start: Selective Projection Decay
and L2-SP. Per tensor, in fp32.

The start is the weights' values when the learner has prepared them for its processes, before a checkpoint is loaded.
Under FSDP2 each process keeps its shards of it; norms and products are summed over all. The start of an
adapter's tensors is zero, as in the published code (`pre: None`), not the random values that its A begins with:
without adapters the model is the one that training started from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grpo.config.learner import OptimConfig
from grpo.learner.launching import on_gpu
from grpo.policy.sharding import gathered


class NearStart(torch.optim.AdamW):
    """AdamW that knows the start of its weights, and how strongly it pulls them back."""

    def __init__(
        self, weights: Sequence[nn.Parameter], *, strength: float, from_zero: bool, **options: Any
    ) -> None:
        super().__init__(weights, **options)
        self.strength = strength
        self.from_zero = from_zero
        self.starts = _starts(weights, from_zero)


class SPD(NearStart):
    """AdamW with Selective Projection Decay (Tian et al. 2024, arXiv 2411.01713; code GT-RIPL, b377695).

    Where the gradient points away from the start (descent wants to go back) and the step moved a tensor
    outward all the same, driven by its momentum, the tensor is pulled back: `strength` 1 puts it at its previous
    distance. The published code asks only the gradient of the current step; the authors' slides add up the product of
    gradient and distance over all steps, as `accumulated` does.
    """

    projected_frac: float = 0.0
    """The share of the tensors that the last step pulled back."""

    def __init__(self, weights: Sequence[nn.Parameter], *, accumulated: bool, **options: Any) -> None:
        super().__init__(weights, **options)
        self.accumulated = accumulated

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        moved = [pair for pair in zip(_weights(self), self.starts, strict=True) if pair[0].grad is not None]
        before = [self._before(weight, start) for weight, start in moved]
        loss = super().step(closure)
        projected = [
            self._project(weight, start, *was) for (weight, start), was in zip(moved, before, strict=True)
        ]
        self.projected_frac = float(torch.stack(projected).float().mean()) if projected else 0.0
        return loss

    @staticmethod
    def _before(weight: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return how strongly descent leads back to the start, and the distance from the start."""
        assert weight.grad is not None
        deviation = weight.float() - start.float()
        return gathered((weight.grad.float() * deviation).sum()), gathered(deviation.norm())

    def _project(self, weight: Tensor, start: Tensor, pull: Tensor, previous: Tensor) -> Tensor:
        """Pull a tensor back towards its start, and return whether it had moved outward."""
        if self.accumulated:
            # Beside Adam's moments, so that it is in checkpoints. There only after a step: Adam takes any entry for its
            # own, and would not make them.
            self.state[weight]["pull"] = pull = pull + self.state[weight].get("pull", 0.0)
        leads_back = pull > 0
        deviation = weight.float() - start.float()
        distance = gathered(deviation.norm())
        # A tensor that never moved would give 0 / 0.
        ratio = ((distance - previous) / distance.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)
        ratio = torch.where(leads_back, ratio, 0.0)
        weight.sub_((self.strength * ratio * deviation).to(weight.dtype))
        return ratio > 0


class L2SP(NearStart):
    """AdamW whose decoupled decay leads to the start in place of zero (Li et al. 2018, arXiv 1802.01483).

    The decay follows the step, as in the algorithm on the slides of SPD's authors; AdamW's own comes before it.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        loss, lr = super().step(closure), self.param_groups[0]["lr"]
        for weight, start in zip(_weights(self), self.starts, strict=True):
            if weight.grad is not None:
                weight.sub_(lr * self.strength * (weight - start))
        return loss


def make_optimizer(
    weights: Sequence[nn.Parameter], optim: OptimConfig, *, from_zero: bool, rows: Tensor | None = None
) -> torch.optim.Optimizer:
    """Return AdamW, AdamW with its moments in 8 bits, or a variant that keeps weights near their start.

    from_zero: the weights are adapters, whose start is zero. rows: those that train, others have no gradient, and keep
    their values exactly; None: all.
    """
    robust = optim.robust
    # On a GPU, torch chooses an implementation with a temporary copy of all weights (foreach); the fused one has none.
    options: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "fused": on_gpu() or None}
    to_start = {"strength": robust.strength, "from_zero": from_zero, "weight_decay": 0.0}
    if robust.method == "spd":
        return SPD(weights, accumulated=robust.spd_accumulates, **to_start, **options)
    if robust.method == "l2_sp":
        return L2SP(weights, **to_start, **options)
    groups = decay_groups(weights, optim.weight_decay if rows is None else 0.0)
    if optim.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        del options["fused"]
        return AdamW8bit(groups, **options)
    optimizer = torch.optim.AdamW(groups, **options)
    if rows is not None:
        optimizer.register_step_pre_hook(partial(_decay_rows, rows=rows, weight_decay=optim.weight_decay))
    return optimizer


@torch.no_grad()
def _decay_rows(optimizer: torch.optim.Optimizer, *_: Any, rows: Tensor, weight_decay: float) -> None:
    """Decay some rows of all weights as AdamW decays a weight, before its step."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight[rows.to(weight.device)] *= 1 - group["lr"] * weight_decay


def decay_groups(weights: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups: matrices, which decay, and norms and biases, which don't.

    Norms and biases are told by their single axis: names differ between the parts of a model.
    """
    matrices, others = (
        [each for each in weights if (each.ndim > 1) == is_matrix] for is_matrix in (True, False)
    )
    groups = {"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]


def take_start(optimizer: torch.optim.Optimizer) -> None:
    """Take the start from the weights again, since preparation may have moved, split or cast them."""
    if isinstance(optimizer, NearStart):
        optimizer.starts = _starts(_weights(optimizer), optimizer.from_zero)


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _starts(weights: Sequence[Tensor], from_zero: bool) -> list[Tensor]:
    """Return the weights' start. Zeros take no memory: each is one number, expanded to the weight's shape."""
    if from_zero:
        return [
            torch.zeros_like(weight)
            if isinstance(weight, DTensor)
            else weight.new_zeros(()).expand_as(weight)
            for weight in weights
        ]
    return [weight.detach().clone() for weight in weights]


def lr_factor(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    schedule: Literal["constant", "cosine"],
    min_lr_frac: float,
) -> float:
    """Return the share of the learning rate at a step, from 1 on: linear warm-up, then constant or a half cosine."""
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - 1 - warmup_steps) / (num_steps - warmup_steps)
    return min_lr_frac + (1 - min_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))
