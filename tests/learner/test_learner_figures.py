"""What an update says about the policy and the engine: means over all completions of the step, trained on or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config.learner import LossConfig, OptimConfig
from grpo.groups import ScoredGroup
from grpo.learner import update as update_module
from grpo.learner.losses import mean_at, row_loss
from grpo.learner.update import UpdateResult
from grpo.policy.model import TokenScores
from grpo.run.metrics import Mean
from tests.support import tiny
from tests.support.learners import counts_of, gradient_of, make_learner, packed, text_groups


def step_groups() -> list[ScoredGroup]:
    """Three groups, of which the second is flat, and the last has a completion without an advantage."""
    groups = text_groups()
    advantages = (None, *groups[2].advantages[1:])
    return [*groups[:2], replace(groups[2], advantages=advantages)]


def updated(
    groups: Sequence[ScoredGroup], loss: LossConfig | None = None, tokens_per_row: int = 40, **optim: Any
) -> UpdateResult:
    learner = make_learner(tiny.policy(seed=1), loss=loss or LossConfig(), optim=OptimConfig(**optim))
    rows, watched = (
        packed(groups, tokens_per_row=tokens_per_row, drop_flat=True, trained=trained)
        for trained in (True, False)
    )
    return learner.update(rows, counts_of(groups), 1, watched=watched)


def everything(groups: Sequence[ScoredGroup]) -> tuple[TokenScores, Tensor, Tensor]:
    """The policy's scores of all completions, the engine's log-probs, and the lengths of the tokens' completions."""
    with_advantages = [replace(each, advantages=(1.0,) * len(each.advantages)) for each in groups]
    (row,) = packed(with_advantages)
    with torch.no_grad():
        return tiny.policy(seed=1)(row), row.sampler_logps_T, row.lengths_T


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_figures_of_the_policy_are_means_over_all_completions(num_iterations: int) -> None:
    groups = step_groups()
    found = updated(groups, num_iterations=num_iterations).metrics.reduced()
    scores, sampler_T, _ = everything(groups)
    gap_T = (scores.logps_T - sampler_T).abs()
    assert found["policy/entropy"] == pytest.approx(float(scores.entropy_T.mean()), rel=1e-4)
    assert found["sampler/gap_mean"] == pytest.approx(float(gap_T.mean()), rel=1e-4)
    assert found["sampler/gap_max"] == pytest.approx(float(gap_T.max()), rel=1e-4)
    # Those that are trained on alone say something else.
    trained = everything(groups[::2])[0]
    assert found["policy/entropy"] != pytest.approx(float(trained.entropy_T.mean()), rel=5e-4)


def test_a_ratio_of_completions_counts_each_completion_once() -> None:
    groups = step_groups()
    loss = LossConfig(vllm_importance_sampling_mode="sequence_mask", vllm_importance_sampling_clip_max=1.0)
    found = updated(groups, loss).metrics.reduced()
    scores, sampler_T, lengths_T = everything(groups)
    sums = (scores.logps_T - sampler_T).split([part[0] for part in split_lengths(lengths_T)])
    ratios = torch.stack([each.sum() for each in sums]).exp()
    assert len(ratios) == 9
    assert found["sampler/ratio_mean"] == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert found["sampler/ratio_max"] == pytest.approx(float(ratios.max()), rel=1e-4)
    # The ratios are those before they are left out; what is left of them is the weight.
    kept = sum(float(ratio) * len(each) for each, ratio in zip(sums, ratios, strict=True) if ratio <= 1)
    assert found["sampler/weight_mean"] == pytest.approx(kept / len(lengths_T), rel=1e-4)
    outside = sum(len(each) for each, ratio in zip(sums, ratios, strict=True) if ratio > 1)
    assert found["sampler/outside_frac"] == pytest.approx(outside / len(lengths_T))


def split_lengths(lengths_T: Tensor) -> list[tuple[int]]:
    found, start = [], 0
    while start < len(lengths_T):
        found.append((int(lengths_T[start]),))
        start += found[-1][0]
    return found


def test_a_mean_at_the_level_of_completions_counts_each_once() -> None:
    values_T, lengths_T = torch.tensor([2.0, 2.0, 2.0, 5.0]), torch.tensor([3, 3, 3, 1])
    assert mean_at("token", values_T, lengths_T) == Mean(11.0, 4)
    found = mean_at("sequence", values_T, lengths_T)
    assert (found.total, found.count) == pytest.approx((7.0, 2.0))


def test_a_step_without_signal_reports_the_same_figures_and_moves_nothing() -> None:
    flat = [replace(each, advantages=(0.0,) * 3) for each in text_groups()]
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(lr=1.0))
    result = learner.update([], counts_of(flat), 1, watched=packed(flat, drop_flat=True, trained=False))
    found, plain = result.metrics.reduced(), updated(text_groups()).metrics.reduced()
    assert result.norms == [] and found.keys() == plain.keys() - {"loss", "optim/grad_norm"}
    for name in ("policy/entropy", "sampler/gap_mean", "sampler/gap_max", "sampler/ratio_mean"):
        assert found[name] == pytest.approx(plain[name], rel=1e-4)
    start = dict(tiny.policy(seed=1).named_weights())
    assert all(torch.equal(weight, start[name]) for name, weight in learner.policy.named_weights())


@pytest.mark.parametrize("kind", ["dapo", "gspo"])
def test_the_clip_fraction_is_the_share_of_what_the_loss_clips_of_the_whole_step(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one of two updates, since nothing is clipped in the first one."""
    groups, ratios = step_groups(), []

    def recorded(row: Any, scores: TokenScores, *given: Any, old_logps_T: Tensor, **options: Any) -> Any:
        ratios.append((scores.logps_T.detach() - old_logps_T, row))
        return row_loss(row, scores, *given, old_logps_T=old_logps_T, **options)

    monkeypatch.setattr(update_module, "row_loss", recorded)
    loss = LossConfig(type=kind, epsilon=0.01, epsilon_high=0.02)
    found = updated(groups, loss, lr=3e-3, num_iterations=2).metrics.reduced()["policy/clip_fraction"]
    num_clipped = num_all = 0
    for logs_T, row in ratios:
        for index in row.completion_T.unique():
            own, advantage = logs_T[row.completion_T == index], row.advantages_T[row.completion_T == index][0]
            each = own.mean()[None].exp() if kind == "gspo" else own.exp()
            num_clipped += int((each > 1.02).sum() if advantage > 0 else (each < 0.99).sum())
    num_all = 9 if kind == "gspo" else sum(len(r.token_ids) for each in groups for r in each.group.rollouts)
    assert num_clipped > 0 and found == pytest.approx(num_clipped / (2 * num_all))


def test_the_loss_of_several_updates_is_their_mean() -> None:
    one, three = (
        updated(step_groups(), lr=1e-12, num_iterations=count).metrics.reduced()["loss"] for count in (1, 3)
    )
    assert three == pytest.approx(one, rel=1e-3) and abs(one) > 0.01


def kept_and_entropies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """A list that each row's mask of selected tokens goes to from now on, with the entropies at that time."""
    seen: list[tuple[Tensor, Tensor]] = []

    def recorded(row: Any, scores: TokenScores, *given: Any, kept_T: Tensor, **options: Any) -> Any:
        seen.append((kept_T, scores.entropy_T.detach()))
        return row_loss(row, scores, *given, kept_T=kept_T, **options)

    monkeypatch.setattr(update_module, "row_loss", recorded)
    return seen


def test_the_entropy_threshold_is_that_of_all_tokens_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat groups count whether or not they are in the rows, and a completion without an advantage does not."""
    groups, quantile = step_groups(), 0.3
    seen = kept_and_entropies(monkeypatch)
    updated(groups, LossConfig(top_entropy_quantile=quantile))
    (row,) = packed(groups)
    with torch.no_grad():
        threshold = torch.quantile(tiny.policy(seed=1)(row).entropy_T, 1 - quantile)
    for kept_T, entropy_T in seen:
        assert torch.equal(kept_T, (entropy_T >= threshold).float())
    trained = torch.cat([entropy_T for _, entropy_T in seen])
    assert torch.quantile(trained, 1 - quantile) != pytest.approx(float(threshold), abs=1e-3)


def test_each_update_selects_tokens_by_the_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = text_groups()
    seen = kept_and_entropies(monkeypatch)
    loss = LossConfig(top_entropy_quantile=0.3)
    updated(groups, loss, tokens_per_row=10_000, lr=1e-2, num_iterations=2)
    (first, _), (second, entropy_T) = seen
    assert not torch.equal(first, second)
    # The flat group's entropies have moved too: the share of the others is what it was, but for a few.
    assert abs(float(second.mean()) - 0.3) < 0.2
    assert entropy_T[second.bool()].min() > entropy_T[~second.bool()].max()


@pytest.mark.parametrize("is_watched", [True, False])
def test_the_selection_is_the_same_wherever_flat_groups_are(is_watched: bool) -> None:
    groups = text_groups()
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(top_entropy_quantile=0.3))
    rows = packed(groups, drop_flat=is_watched)
    watched = packed(groups, drop_flat=is_watched, trained=False)
    learner.forward_backward(learner.prepare(rows, counts_of(groups), watched))
    found = gradient_of(learner.policy)
    other = make_learner(tiny.policy(seed=1), loss=LossConfig(top_entropy_quantile=0.3))
    other.forward_backward(other.prepare(packed(groups), counts_of(groups)))
    expected = gradient_of(other.policy)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert math.isfinite(float(found.norm())) and bool(watched) == is_watched
