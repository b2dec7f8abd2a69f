"""Gathering of weights that are split over processes (DeepSpeed ZeRO-3, FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_zero3(weight: Tensor) -> bool:
    """Return whether DeepSpeed has split a weight, which then is empty except while its module runs."""
    # DeepSpeed itself tells by this attribute.
    return hasattr(weight, "ds_id")


@contextmanager
def together(weights: Iterable[Tensor]) -> Iterator[None]:
    """Hold those of the weights that ZeRO-3 has split whole inside the context, gathered in one exchange.

    All processes must enter it with the same weights.
    """
    split = [weight for weight in weights if is_zero3(weight)]
    if not split:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(split):
        yield


def held(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a whole weight without its gradient, in a precision, inside `together`; None: in its own.

    All processes must call this in the same order. FSDP2's parts are cast before they are gathered: less is exchanged.
    """
    found = weight.detach().clone() if is_zero3(weight) else weight.detach()
    return gathered(found if dtype is None else found.to(dtype))


def whole(weight: Tensor) -> Tensor:
    """Return a whole weight without its gradient. All processes must call this in the same order if it is split."""
    with together([weight]):
        return held(weight)


def num_elements(weight: Any) -> int:
    """Return the number of a whole weight's elements, however it is stored."""
    if is_zero3(weight):
        return weight.ds_numel
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of an FSDP2 tensor; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_head(head: nn.Module, weight: Any) -> None:
    """Under ZeRO-3, gather the output embedding once for all chunks that `head` computes."""
    if is_zero3(weight):
        from deepspeed import zero

        zero.register_external_parameter(head, weight)
