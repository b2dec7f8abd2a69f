"""Gathering of weights that are split over processes (DeepSpeed ZeRO-3, FSDP2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_zero3(weight: Tensor) -> bool:
    """Return whether DeepSpeed has split a weight, which then is empty except while its module runs."""
    # DeepSpeed itself tells by this attribute.
    return hasattr(weight, "ds_id")


def whole(weight: Tensor) -> Tensor:
    """Return a whole weight without its gradient. All processes must call this in the same order if it is split."""
    if is_zero3(weight):
        from deepspeed import zero

        with zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return gathered(weight.detach())


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of an FSDP2 tensor; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_head(head: nn.Module, weight: Any) -> None:
    """Under ZeRO-3, gather the output embedding once for all chunks that `head` computes."""
    if is_zero3(weight):
        from deepspeed import zero

        zero.register_external_parameter(head, weight)
