"""Weights on their way to engines and files: in buckets, whole, each once."""

from __future__ import annotations

import pytest
import torch

from grpo.policy.weights import BUCKET_BYTES, HEAD, engine_weights, flat, weight_buckets
from tests.support import tiny


def size(bucket: list[tuple[str, torch.Tensor]]) -> int:
    return sum(weight.numel() * weight.itemsize for _, weight in bucket)


@pytest.mark.usefixtures("each_family")
@pytest.mark.parametrize("max_bytes", [1, 100_000, BUCKET_BYTES])
def test_every_weight_is_in_one_bucket_and_no_bucket_is_too_large(max_bytes: int) -> None:
    policy = tiny.policy()
    buckets = list(weight_buckets(policy.model, max_bytes=max_bytes))
    assert all(size(bucket) <= max_bytes or len(bucket) == 1 for bucket in buckets)
    assert [name for name, _ in flat(iter(buckets))] == [name for name, _ in policy.model.named_parameters()]
    assert (len(buckets) == 1) == (max_bytes == BUCKET_BYTES)


def test_a_bucket_is_measured_in_the_precision_that_is_asked_for() -> None:
    model = tiny.policy().model
    buckets = list(weight_buckets(model, dtype=torch.bfloat16, max_bytes=100_000))
    assert {weight.dtype for bucket in buckets for _, weight in bucket} == {torch.bfloat16}
    assert len(buckets) < len(list(weight_buckets(model, max_bytes=100_000)))
    assert all(size(bucket) <= 100_000 or len(bucket) == 1 for bucket in buckets)


def test_weights_without_their_adapters_are_those_of_the_base() -> None:
    base = dict(tiny.policy().named_weights())
    adapted = tiny.policy(lora=tiny.LORA)
    tiny.stir({name: weight for name, weight in adapted.named_parameters() if ".lora_" in name}, 3)
    found = dict(flat(weight_buckets(adapted.model, merges=False)))
    assert found.keys() == base.keys() and all(torch.equal(found[name], base[name]) for name in base)
    assert not all(torch.equal(weight, base[name]) for name, weight in adapted.named_weights())


@pytest.mark.usefixtures("each_family")
def test_engines_also_get_a_tied_head_under_its_own_name() -> None:
    model = tiny.policy().model
    sent = list(flat(engine_weights(model, dtype=torch.float32, max_bytes=1000)))
    own = dict(flat(weight_buckets(model)))
    assert [name for name, _ in sent].count(HEAD) == 1
    assert {name for name, _ in sent} == own.keys() | {HEAD}
    assert torch.equal(dict(sent)[HEAD], model.get_input_embeddings().weight)
