"""The parts of an update: the learning rate of each step, the clipping of gradients, losses that are infinite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig, OptimConfig
from grpo.groups import completion_key
from grpo.learner import update as update_module
from grpo.learner.losses import row_loss
from grpo.learner.optimizers import lr_factor
from grpo.run.metrics import Metrics
from tests.support import tiny
from tests.support.learners import counts_of, gradient_of, make_learner, packed, text_groups


def factors(
    schedule: Any, *, num_steps: int = 8, warmup_steps: int = 0, min_lr_frac: float = 0.0
) -> list[float]:
    settings: dict[str, Any] = {
        "num_steps": num_steps,
        "warmup_steps": warmup_steps,
        "min_lr_frac": min_lr_frac,
    }
    return [lr_factor(step, schedule=schedule, **settings) for step in range(1, num_steps + 1)]


def test_the_learning_rate_of_each_step_by_hand() -> None:
    # Four steps of warm-up: 1/4, 2/4, 3/4, 1. Then the cosine over the four that are left: (1 + cos(k pi / 4)) / 2.
    warm = [0.25, 0.5, 0.75, 1.0]
    assert factors("constant", warmup_steps=4) == pytest.approx([*warm, 1.0, 1.0, 1.0, 1.0])
    assert factors("cosine", warmup_steps=4) == pytest.approx([*warm, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    # The same between 1 and 0.2: 0.2 + 0.8 * factor.
    low = factors("cosine", warmup_steps=4, min_lr_frac=0.2)
    assert low == pytest.approx([*warm, 1.0, 0.882843, 0.6, 0.317157], abs=1e-6)
    assert factors("cosine", num_steps=6, warmup_steps=2)[2:] == factors("cosine", num_steps=4)
    assert factors("cosine", num_steps=4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert factors("cosine", num_steps=2, warmup_steps=2) == [0.5, 1.0]


def test_the_optimizer_has_the_steps_learning_rate() -> None:
    optim = OptimConfig(lr=1e-3, warmup_steps=4, schedule="constant", weight_decay=0.1)
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=optim)
    result = learner.update(packed(text_groups()), counts_of(text_groups()), 3)
    assert result.metrics.reduced()["optim/lr"] == pytest.approx(0.75e-3)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.75e-3] * 2)
    result = learner.update(packed(text_groups()), counts_of(text_groups()), 7)
    assert result.metrics.reduced()["optim/lr"] == 1e-3  # a cosine would have begun to fall
    learner.optim = replace(optim, schedule="cosine", min_lr_frac=0.2)
    # Three of the six steps after the warm-up are over: half of the way from 1 to 0.2.
    assert learner._set_lr(8).maxima["optim/lr"] == pytest.approx(0.6e-3)


def test_a_plain_update_passes_each_row_once() -> None:
    groups, passes = text_groups(), []
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig())
    learner.policy.register_forward_hook(lambda *_: passes.append(1))
    rows = packed(groups)
    learner.update(rows, counts_of(groups), 1)
    assert len(passes) == len(rows)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_gradient_is_clipped_to_the_largest_norm_and_its_own_is_reported(share: float) -> None:
    groups = text_groups()
    plain = make_learner(tiny.policy(seed=1), loss=LossConfig())
    plain.forward_backward(plain.prepare(packed(groups), counts_of(groups)))
    norm = float(gradient_of(plain.policy).norm())
    optim = OptimConfig(max_grad_norm=share * norm)
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=optim)
    seen: list[float] = []
    learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(gradient_of(learner.policy).norm()))
    )
    result = learner.update(packed(groups), counts_of(groups), 1)
    assert seen == pytest.approx([min(share, 1.0) * norm], rel=1e-3)
    assert result.norms == pytest.approx([norm], rel=1e-3)
    assert result.metrics.reduced()["optim/grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert float(gradient_of(learner.policy).norm()) == 0.0  # nothing is left for the next update


def test_a_row_that_spoils_one_of_several_updates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def spoiled(*given: Any, **options: Any) -> Any:
        passes.append(1)
        loss, metrics = row_loss(*given, **options)
        return loss * (math.nan if len(passes) == 1 else 1.0), metrics

    monkeypatch.setattr(update_module, "row_loss", spoiled)
    groups, rows = text_groups(), packed(text_groups())
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(num_iterations=2))
    result = learner.update(rows, counts_of(groups), 1)
    assert result.num_skipped == 1 and result.bad_rows == rows and len(passes) == 2


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_an_update_tells_the_log_probs_that_all_completions_had_before_it(num_iterations: int) -> None:
    groups, policy = text_groups(), tiny.policy(seed=1)
    before = {
        completion_key(rollout): policy(
            packed([replace(group, group=replace(group.group, rollouts=(rollout,)), advantages=(1.0,))])[0]
        ).logps_T.detach()
        for group in groups
        for rollout in group.group.rollouts
    }
    rows, watched = (packed(groups, drop_flat=True, trained=trained) for trained in (True, False))
    learner = make_learner(policy, loss=LossConfig(), optim=OptimConfig(num_iterations=num_iterations))
    found = learner.update(rows, counts_of(groups), 1, watched=watched).logps
    assert len(watched) > 0 and found.keys() == before.keys()
    for key, logps_T in before.items():
        torch.testing.assert_close(torch.tensor(found[key]), logps_T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_infinite_loss_is_skipped_where_its_gradient_is_finite(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*given: Any, **options: Any) -> Any:
        loss, metrics = row_loss(*given, **options)
        return loss + value, metrics

    monkeypatch.setattr(update_module, "row_loss", spoiled)
    groups, rows = text_groups(), packed(text_groups())
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(lr=1.0))
    result = learner.update(rows, counts_of(groups), 1)
    assert result.num_skipped == 1 and result.bad_rows == rows and "loss" not in result.metrics.reduced()
    start = dict(tiny.policy(seed=1).named_weights())
    assert all(torch.equal(weight, start[name]) for name, weight in learner.policy.named_weights())


def test_the_pass_of_a_row_whose_loss_is_not_finite_gives_its_log_probs_and_no_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups, policy = text_groups(), tiny.policy(seed=1)
    (row,) = packed(groups)
    expected_T = policy(row).logps_T.detach()
    monkeypatch.setattr(update_module, "row_loss", lambda *_, **__: (expected_T.sum() * math.nan, Metrics()))
    learner = make_learner(policy, loss=LossConfig())
    monkeypatch.setattr(learner, "_backward", lambda loss: None)
    (found,) = learner.forward_backward(learner.prepare([row], counts_of(groups)))
    assert (found.is_finite, found.metrics) == (False, Metrics())
    assert torch.equal(found.old_logps_T, expected_T)
