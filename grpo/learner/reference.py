"""The reference of the KL term: the policy's frozen start, without adapters or as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo.policy.adapters import adapters_off
from grpo.policy.model import Policy


class Reference(Protocol):
    """The policy's start, which the KL term compares it with."""

    def ready(self) -> AbstractContextManager[Any]:
        """Return a context that gives the policy to call for log-probs."""
        ...


class WithoutAdapters:
    """A reference that is the policy itself with its adapters off, without a second copy in memory."""

    def __init__(self, policy: Policy, wrapped: Any) -> None:
        """Make a reference of the policy; `wrapped` is the policy as several processes call it together."""
        self.policy, self.wrapped = policy, wrapped

    @contextmanager
    def ready(self) -> Iterator[Any]:
        with adapters_off(self.policy.model):
            yield self.wrapped


class SecondCopy:
    """A reference that is a model of its own, in main memory between steps if it is offloaded."""

    def __init__(self, policy: Policy, device: torch.device, *, offload: bool) -> None:
        self.policy = policy.requires_grad_(False).eval()
        self.device, self.offload = device, offload
        if not offload:
            self.policy.to(device)
        elif device.type == "cuda":
            # Pinned memory is copied from several times as fast as other memory.
            for tensor in self._tensors():
                tensor.data = tensor.data.pin_memory()

    @contextmanager
    def ready(self) -> Iterator[Any]:
        if not self.offload:
            yield self.policy
            return
        # The copies on the device are dropped, since nothing has changed them.
        at_home = [(tensor, tensor.data) for tensor in self._tensors()]
        try:
            for tensor, data in at_home:
                tensor.data = data.to(self.device, non_blocking=True)
            yield self.policy
        finally:
            for tensor, data in at_home:
                tensor.data = data

    def _tensors(self) -> list[Tensor]:
        """Return all weights and buffers of the reference, each once."""
        return [*self.policy.parameters(), *self.policy.buffers()]

    @torch.no_grad()
    def follow(self, named_weights: Iterable[tuple[str, Tensor]], share: float) -> None:
        """Move the reference's weights towards others, which get this share in the new ones."""
        own = dict(self.policy.model.named_parameters())
        for name, weight in named_weights:
            own[name].lerp_(weight.to(own[name]), share)
