"""Training of the new rows alone: all other weights keep every bit, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from grpo.config.learner import LossConfig, OptimConfig, RobustConfig
from grpo.policy.model import Policy
from grpo.run.checkpoint import restore, save
from tests.support import grown, tiny
from tests.support.learners import counts_of, make_learner, packed

OPTIMIZERS = {
    "adamw": OptimConfig(lr=1e-2, weight_decay=0.1),
    "spd": OptimConfig(lr=1e-2, robust=RobustConfig(method="spd", strength=1.0)),
    "l2_sp": OptimConfig(lr=1e-2, robust=RobustConfig(method="l2_sp", strength=1.0)),
}


@pytest.fixture(params=["qwen2_5_vl_grown", "qwen3_vl_untied_grown"])
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    with tiny.of_family(request.param):
        yield request.param


@pytest.fixture
def tied() -> Iterator[None]:
    with tiny.of_family("qwen2_5_vl_grown"):
        yield


def rows() -> list[int]:
    return grown.vocabulary().token_ids


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}


def learner_of(policy: Policy, optim: OptimConfig) -> Any:
    return make_learner(policy, loss=LossConfig(), optim=optim)


def update(learner: Any, step: int) -> None:
    groups = grown.coded_groups()
    learner.update(packed(groups), counts_of(groups), step)


def logps_backward(policy: Policy) -> None:
    (row,) = packed(grown.coded_groups())
    policy(row).logps_T.sum().backward()


def test_rows_have_the_gradient_of_a_whole_training_and_all_else_has_none(family: str) -> None:
    whole, own = tiny.policy(seed=1), tiny.policy(seed=1, new_rows_only=True)
    for policy in (whole, own):
        logps_backward(policy)
    expected = dict(whole.model.named_parameters())
    trained = []
    for name, weight in own.model.named_parameters():
        if weight.grad is None:
            continue
        trained.append(name)
        full, others = expected[name].grad, torch.ones(len(weight), dtype=torch.bool)
        assert full is not None
        others[rows()] = False
        torch.testing.assert_close(weight.grad[rows()], full[rows()], rtol=1e-5, atol=1e-6)
        assert (weight.grad[others] == 0).all() and full[others].any()
        assert weight.grad[rows()].any()
    assert len(trained) == (2 if "untied" in family else 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_move_the_new_rows_alone(name: str, tied: None) -> None:
    policy = tiny.policy(new_rows_only=True)
    before, learner = weights_of(policy), learner_of(policy, OPTIMIZERS[name])
    for step in range(1, 4):
        update(learner, step)
    for key, weight in weights_of(policy).items():
        changed = (weight != before[key]).flatten(1 if weight.ndim > 1 else 0)
        if not key.endswith("embed_tokens.weight"):
            assert not changed.any(), key
        else:
            assert {*changed.any(-1).nonzero()[:, 0].tolist()} == {*rows()}


def test_new_rows_move_as_if_they_were_a_weight_of_their_own(tied: None) -> None:
    optim = OPTIMIZERS["adamw"]
    policy = tiny.policy(new_rows_only=True)
    weight = policy.model.lm_head.weight
    own = torch.nn.Parameter(weight.detach()[rows()].clone())
    alone = torch.optim.AdamW([own], lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    learner = learner_of(policy, optim)
    step = learner.optimizer.step

    def watched() -> None:
        own.grad = weight.grad[rows()].clone()
        alone.param_groups[0]["lr"] = learner.optimizer.param_groups[0]["lr"]
        alone.step()
        step()

    learner.optimizer.step = watched
    for number in range(1, 4):
        update(learner, number)
    torch.testing.assert_close(weight.detach()[rows()], own.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("family_name", "trained"),
    [("qwen2_5_vl_grown", {"new_rows_only": True}), ("qwen3_vl_untied_grown", {"lora": tiny.LORA})],
    ids=["new rows", "adapters"],
)
def test_what_goes_on_from_a_checkpoint_is_what_was_not_stopped(
    family_name: str, trained: dict[str, Any], tmp_path: Path
) -> None:
    optim = OPTIMIZERS["adamw"]
    with tiny.of_family(family_name):
        whole, first, second = (learner_of(tiny.policy(**trained), optim) for _ in range(3))
        for step in range(1, 5):
            update(whole, step)
        for step in range(1, 3):
            update(first, step)
        save(tmp_path, 2, first.accelerator, keep=1)
        assert restore(tmp_path, second.accelerator) == 2
        for step in range(3, 5):
            update(second, step)
    expected = weights_of(whole.policy)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(second.policy).items())


def test_the_gradient_that_processes_exchange_is_that_of_the_rows(tied: None, tmp_path: Path) -> None:
    alone, shared = (tiny.policy(seed=1, new_rows_only=True) for _ in range(2))
    logps_backward(alone)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        (row,) = packed(grown.coded_groups())
        DistributedDataParallel(shared)(row).logps_T.sum().backward()
    finally:
        dist.destroy_process_group()
    found, expected = (each.model.lm_head.weight.grad for each in (shared, alone))
    torch.testing.assert_close(found, expected)
    assert {*found.abs().sum(-1).nonzero()[:, 0].tolist()} <= {*rows()}


def test_a_model_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.new_rows_only: .* has no code tokens"):
        tiny.policy(new_rows_only=True)
