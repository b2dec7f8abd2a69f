"""What the KL term compares the policy with: its frozen start, without adapters or as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo.policy.adapters import adapters_off
from grpo.policy.model import Policy


class Reference(Protocol):
    def ready(self) -> AbstractContextManager[Any]:
        """The policy to call for log-probs, inside the context."""
        ...


class WithoutAdapters:
    """The policy itself with its adapters off: no second copy, and no memory."""

    def __init__(self, policy: Policy, wrapped: Any) -> None:
        """wrapped: the policy as it is called where several processes share the work."""
        self.policy, self.wrapped = policy, wrapped

    @contextmanager
    def ready(self) -> Iterator[Any]:
        with adapters_off(self.policy.model):
            yield self.wrapped


class SecondCopy:
    """A model of its own, which stays in main memory between steps if it is offloaded."""

    def __init__(self, policy: Policy, device: torch.device, *, offload: bool) -> None:
        self.policy = policy.requires_grad_(False).eval()
        self.device, self.offload = device, offload
        if not offload:
            self.policy.to(device)

    @contextmanager
    def ready(self) -> Iterator[Any]:
        self.policy.to(self.device)
        try:
            yield self.policy
        finally:
            if self.offload:
                self.policy.to("cpu")

    @torch.no_grad()
    def follow(self, named_weights: Iterable[tuple[str, Tensor]], share: float) -> None:
        """Move towards other weights, which get this share in the new ones."""
        own = dict(self.policy.model.named_parameters())
        for name, weight in named_weights:
            own[name].lerp_(weight.to(own[name]), share)
