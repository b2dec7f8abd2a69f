"""The weights as they leave the policy, for engines and files: whole, by their names in checkpoints, in buckets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo.policy.adapters import adapted_layers, adapter_weights, is_adapter, merged, plain_name, unquantized
from grpo.policy.sharding import held, num_elements, together

BUCKET_BYTES = 2**28
"""The size of a bucket unless somebody asks for another one: sharded weights of so many bytes are gathered at once."""

HEAD = "lm_head.weight"
"""The name of the output head's weight in checkpoints."""

EMBEDDING = ".embed_tokens.weight"
"""How the name of the embedding's weight ends."""

MAX_NAMED = 8
"""The most names in a message."""

Bucket = list[tuple[str, Tensor]]


class _Source(NamedTuple):
    """A weight in the model, possibly in parts, and the layer whose adapters are merged into it."""

    name: str
    weight: Tensor
    layer: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        """The weight, and its adapters where they are merged."""
        return [self.weight] if self.layer is None else [self.weight, *adapter_weights(self.layer)[:2]]

    def whole(self, dtype: torch.dtype | None) -> Tensor:
        """Return the whole weight in a precision, inside `together`; None: its own."""
        if self.layer is None:
            return held(unquantized(self.weight), dtype)
        # Adapters would be lost if the weight were rounded before they are added.
        weight_OI, down_RI, up_OR = (held(unquantized(tensor)) for tensor in self.tensors)
        weight_OI = merged(weight_OI, down_RI, up_OR, adapter_weights(self.layer)[2])
        return weight_OI if dtype is None else weight_OI.to(dtype)


def weight_buckets(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    merges: bool = True,
    max_bytes: int = BUCKET_BYTES,
) -> Iterator[Bucket]:
    """Yield every weight once, by its name in checkpoints, in buckets of at most `max_bytes`, or of a single weight.

    A tied head is the embedding. dtype: the precision of what is yielded; None: that of each weight. merges: adapters
    are added to their weights, before these are rounded; otherwise they are left out. Where weights are split over
    processes, all processes must iterate together, and none of them holds more than a bucket beside its own part.
    """
    layers = adapted_layers(model) if merges else {}
    sources = []
    for name, weight in model.named_parameters():
        if not is_adapter(name):
            plain = plain_name(name)
            sources.append(_Source(plain, weight, layers.get(plain.removesuffix(".weight"))))
    for bucket in _in_buckets(sources, dtype, max_bytes):
        with together(tensor for source in bucket for tensor in source.tensors):
            found = [(source.name, source.whole(dtype)) for source in bucket]
        yield found


def engine_weights(
    model: Any, *, dtype: torch.dtype, merges: bool = True, max_bytes: int = BUCKET_BYTES
) -> Iterator[Bucket]:
    """Yield buckets as `weight_buckets` does, and after them a tied head under its own name.

    vLLM on a CPU keeps a packed copy of the embedding as its head, and would go on sampling with the old one.
    """
    buckets = weight_buckets(model, dtype=dtype, merges=merges, max_bytes=max_bytes)
    tied = has_tied_head(model)
    for bucket in buckets:
        yield bucket
        yield from ([(HEAD, weight)] for name, weight in bucket if tied and name.endswith(EMBEDDING))


def has_tied_head(model: Any) -> bool:
    """Return whether the output head is the embedding."""
    return model.lm_head.weight is model.get_input_embeddings().weight


def flat(buckets: Iterator[Bucket]) -> Iterator[tuple[str, Tensor]]:
    """Return the weights of all buckets one after another."""
    return chain.from_iterable(buckets)


def check_names(unknown: Iterable[str], missing: Iterable[str]) -> None:
    """Raise ValueError if there are names that one side does not know."""
    wrong = {"unknown to the engine": sorted(set(unknown)), "not given to the engine": sorted(set(missing))}
    said = [f"{what}: {_listed(names)}" for what, names in wrong.items() if names]
    if said:
        raise ValueError("the policy's weights are not the engine's; " + "; ".join(said))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (
        f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    )


def _in_buckets(sources: list[_Source], dtype: torch.dtype | None, max_bytes: int) -> Iterator[list[_Source]]:
    bucket: list[_Source] = []
    num_bytes = 0
    for source in sources:
        size = num_elements(source.weight) * (dtype or source.weight.dtype).itemsize
        if bucket and num_bytes + size > max_bytes:
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(source)
        num_bytes += size
    if bucket:
        yield bucket
