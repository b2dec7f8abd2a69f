"""Weights that are split over processes (DeepSpeed ZeRO-3, FSDP2), whole for a moment."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_zero3(weight: Tensor) -> bool:
    """DeepSpeed has taken the weight apart: it is empty but while a module that owns it runs."""
    return hasattr(weight, "ds_id")  # how DeepSpeed itself tells


def whole(weight: Tensor) -> Tensor:
    """A weight without its gradient, gathered where it is split: all processes must ask, in the same order."""
    if is_zero3(weight):
        from deepspeed import zero

        with zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return gathered(weight.detach())


def gathered(tensor: Tensor) -> Tensor:
    """The whole of an FSDP2 tensor; another tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_head(head: nn.Module, weight: Any) -> None:
    """Under ZeRO-3, gather the output embedding once for all that `head` does, however many chunks that is."""
    if is_zero3(weight):
        from deepspeed import zero

        zero.register_external_parameter(head, weight)
