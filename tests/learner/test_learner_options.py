"""The learner's options on the tiny policy: each changes the update as it says, wherever the rows lie."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig, OptimConfig, RobustConfig
from grpo.config.load import load_config
from grpo.groups import Group, RewardTable
from grpo.learner.advantages import score_groups
from grpo.learner.reference_reward import add_reference_parts
from tests.support import tiny
from tests.support.launched import run_in_two
from tests.support.learners import (
    LONG,
    SHORT,
    counts_of,
    gradient_of,
    make_learner,
    moved_policy,
    packed,
    text_groups,
    updated,
)
from tests.support.runs import repeatable, run, weights

CASES = {
    "gspo": LossConfig(type="gspo"),
    "dr_grpo": LossConfig(type="dr_grpo", vllm_importance_sampling_mode="token_mask"),
    "sapo": LossConfig(type="sapo", vllm_importance_sampling_clip_max=1.2),
    "entropy": LossConfig(top_entropy_quantile=0.3, entropy_coef=0.03),
    "top entropy": LossConfig(type="bnpo", top_entropy_quantile=0.3),
    "k1": LossConfig(type="cispo", epsilon_high=5.0, beta=0.04, kl_estimator="k1"),
    "k2": LossConfig(beta=0.04, kl_estimator="k2", use_bias_correction_kl=False),
}


def update_of(
    settings: LossConfig, tokens_per_row: int = 10_000, lengths_of: Sequence[list[int]] = SHORT
) -> tuple[float, torch.Tensor]:
    groups, policy = text_groups(lengths_of=lengths_of), tiny.policy(seed=1)
    rows = packed(groups, tokens_per_row=tokens_per_row, drop_flat=not settings.needs_flat_groups)
    figures = updated(policy, rows, counts_of(groups), loss=settings, reference=moved_policy())
    return figures["loss"], gradient_of(policy)


def assert_same_update(a: tuple[float, torch.Tensor], b: tuple[float, torch.Tensor]) -> None:
    assert a[0] == pytest.approx(b[0], abs=1e-5)
    assert float((a[1] - b[1]).norm() / b[1].norm()) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_update_does_not_depend_on_packing(case: str) -> None:
    expected = update_of(CASES[case])
    for tokens_per_row in (1, 60):  # one completion a row, and some
        assert_same_update(update_of(CASES[case], tokens_per_row), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rows_of_the_second", "lacks"),
    # The process that lacks memory has a single row, and the other one another.
    [("gspo", 1, ""), ("entropy", 1, ""), ("top entropy", 0, ""), ("top entropy", 1, "memory")],
)
def test_the_update_does_not_depend_on_processes(
    case: str, rows_of_the_second: int, lacks: str, tmp_path: Path
) -> None:
    """Nor on the memory of one of them, which passes a row in two halves."""
    arguments = [
        "-m",
        "tests.support.learner_worker",
        case,
        str(rows_of_the_second),
        str(tmp_path / "update.pt"),
        *([lacks] if lacks else []),
    ]
    run_in_two(arguments, dict(os.environ), tmp_path)
    loss, gradient, num_split = torch.load(tmp_path / "update.pt")
    expected = update_of(CASES[case], lengths_of=LONG if lacks else SHORT)
    assert_same_update((loss, gradient), expected)
    assert bool(num_split) == bool(lacks)


def test_an_entropy_has_a_gradient_only_where_it_is_asked_for() -> None:
    policy, (row,) = tiny.policy(seed=1), packed(text_groups())
    assert not policy(row).entropy_T.requires_grad
    policy(row, entropy_gradient=True).entropy_T.sum().backward()
    found = gradient_of(policy)
    policy.zero_grad()
    hidden = []
    policy.model.model.language_model.register_forward_hook(lambda *each: hidden.append(each[-1][0]))
    policy(row)
    logits_TV = policy.logits(hidden[0][0][row.source_T], row.input_ids_N[row.source_T])
    torch.distributions.Categorical(logits=logits_TV).entropy().sum().backward()
    expected = gradient_of(policy)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_the_entropy_bonus_raises_the_entropy() -> None:
    before, after = tiny.policy(seed=1), tiny.policy(seed=1)
    (row,) = packed(text_groups())
    learner = make_learner(after, loss=LossConfig(entropy_coef=10.0), optim=OptimConfig(lr=1e-3))
    learner.update([row], counts_of(text_groups()), 1)
    assert after(row).entropy_T.mean() > before(row).entropy_T.mean() + 0.1


def test_the_gap_to_the_engine_is_in_the_metrics() -> None:
    groups = text_groups()
    (row,) = packed(groups)
    settings = LossConfig(vllm_importance_sampling_mode="token_mask", vllm_importance_sampling_clip_max=1.1)
    figures = updated(tiny.policy(seed=1), [row], counts_of(groups), loss=settings)
    ratio_T = torch.exp(tiny.policy(seed=1)(row).logps_T.detach() - row.sampler_logps_T)
    assert figures["sampler/ratio_mean"] == pytest.approx(float(ratio_T.mean()), rel=1e-4)
    assert figures["sampler/ratio_max"] == pytest.approx(float(ratio_T.max()), rel=1e-4)
    assert figures["sampler/outside_frac"] == pytest.approx(float((ratio_T > 1.1).float().mean()))
    off = updated(
        tiny.policy(seed=1),
        [row],
        counts_of(groups),
        loss=LossConfig(vllm_importance_sampling_correction=False),
    )
    assert "sampler/ratio_mean" not in off and "sampler/gap_max" in off


def test_a_completion_that_was_cut_off_counts_for_its_group_alone() -> None:
    scored = text_groups()[0]
    rollouts = tuple(replace(rollout, stopped=i != 1) for i, rollout in enumerate(scored.group.rollouts))
    group = replace(scored.group, rollouts=rollouts)
    table = tiny.table((1.0, 0.0, 5.0))
    (found,) = score_groups([group], [table], scale="none", mask_truncated=True)
    assert found.advantages == (-1.0, None, 3.0)  # 2, the mean, is that of all three
    assert found.table == table
    (row,) = packed([found])
    assert sorted(set(row.lengths_T.tolist())) == [1, 3]  # not 11
    (kept,) = score_groups([group], [table], scale="none")
    assert kept.advantages == (-1.0, -2.0, 3.0)


def test_a_divergence_in_the_reward_is_the_sum_over_a_completions_tokens() -> None:
    groups = [scored.group for scored in text_groups()]
    tables = [RewardTable(columns={}, parts={"a": (1.0, 2.0, 3.0)}, totals=(1.0, None, 3.0), failures=())] * 3
    settings = LossConfig(beta=0.5, kl_in_reward=True, kl_estimator="k1")
    learner = make_learner(tiny.policy(), loss=settings, reference=moved_policy())
    found, metrics = add_reference_parts(groups, tables, learner.reference_logps, settings, tiny.family())
    for group, table in zip(groups, found, strict=True):
        expected = [
            sum(rollout.logprobs) - reference_sum(group, i) for i, rollout in enumerate(group.rollouts)
        ]
        assert table.parts["kl"] == pytest.approx([-0.5 * value for value in expected], abs=1e-4)
        assert table.parts["a"] == (1.0, 2.0, 3.0)
        assert table.totals[1] is None
        assert [table.totals[0], table.totals[2]] == pytest.approx(
            [1 - 0.5 * expected[0], 3 - 0.5 * expected[2]], abs=1e-4
        )
    assert "policy/kl" in metrics.reduced()


def reference_sum(group: Group, index: int) -> float:
    """A completion's log-prob under the reference, from a row of its own."""
    scored = replace(
        text_groups()[0], group=replace(group, rollouts=(group.rollouts[index],)), advantages=(1.0,)
    )
    return moved_policy()(packed([scored])[0]).logps_T.sum().item()


def test_a_kl_in_the_reward_is_not_in_the_loss() -> None:
    loss, gradient = update_of(LossConfig(beta=0.5, kl_in_reward=True))
    expected = update_of(LossConfig())
    assert_same_update((loss, gradient), expected)
    assert update_of(LossConfig(beta=0.5))[0] != pytest.approx(expected[0], abs=1e-3)


def test_the_reference_follows_the_policy_every_few_steps_and_is_checkpointed(tmp_path: Path) -> None:
    settings = LossConfig(beta=0.1, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.25)
    policy, groups = tiny.policy(seed=1), text_groups()
    learner = make_learner(policy, loss=settings, optim=OptimConfig(lr=1e-3), reference=tiny.policy(seed=1))
    for step in (1, 2, 3):
        learner.update(packed(groups), counts_of(groups), step)
        if step == 2:
            at_two = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
        if step == 1:
            for old, start in zip(
                learner.reference.policy.parameters(), tiny.policy(seed=1).parameters(), strict=True
            ):
                assert torch.equal(old, start)
    start = dict(tiny.policy(seed=1).named_parameters())
    moved = dict(learner.reference.policy.named_parameters())
    for name, weight in moved.items():
        torch.testing.assert_close(weight, 0.75 * start[name] + 0.25 * at_two[name])
    learner.accelerator.save_state(str(tmp_path / "state"))
    resumed = make_learner(tiny.policy(seed=1), loss=settings, reference=tiny.policy(seed=1))
    resumed.accelerator.load_state(str(tmp_path / "state"))
    for name, weight in resumed.reference.policy.named_parameters():
        assert torch.equal(weight, moved[name])


def test_spd_in_the_learner_reports_what_it_projects_and_pulls_towards_the_first_start(
    tmp_path: Path,
) -> None:
    optim = OptimConfig(lr=1e-3, robust=RobustConfig(method="spd", strength=1.0))
    policy, groups = tiny.policy(seed=1), text_groups()
    learner = make_learner(policy, loss=LossConfig(), optim=optim)
    fractions = []
    for step in range(1, 7):
        flipped = [replace(s, advantages=tuple(-a * (-1) ** step for a in s.advantages)) for s in groups]  # pyright: ignore
        result = learner.update(packed(flipped), counts_of(groups), step)
        fractions.append(result.metrics.reduced()["optim/projected_frac"])
        assert fractions[-1] == learner.optimizer.optimizer.projected_frac
    assert fractions[0] == 0.0 and 0 < max(fractions) <= 1
    learner.accelerator.save_state(str(tmp_path / "state"))
    resumed = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=optim)
    resumed.accelerator.load_state(str(tmp_path / "state"))
    for start, anchor in zip(
        tiny.policy(seed=1).parameters(), resumed.optimizer.optimizer.starts, strict=True
    ):
        assert torch.equal(anchor, start)


@pytest.mark.parametrize("trained", [{}, {"lora": tiny.LORA}], ids=["all", "adapters"])
def test_adapters_are_pulled_towards_zero_and_other_weights_towards_their_start(
    trained: dict[str, Any],
) -> None:
    policy = tiny.policy(seed=1, **trained)
    optim = OptimConfig(robust=RobustConfig(method="l2_sp", strength=1.0))
    starts = make_learner(policy, loss=LossConfig(), optim=optim).optimizer.optimizer.starts
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    for start, weight in zip(starts, weights, strict=True):
        assert torch.equal(start, weight.detach() * (not trained))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss.type=ppo"], "loss.type"),
        (["loss.type=gspo", "loss.importance_sampling_level=token"], "loss.type=gspo has"),
        (["loss.type=cispo"], "loss.epsilon_high=0.2: with loss.type=cispo it is the largest ratio"),
        (["loss.type=sapo", "loss.delta=4"], "loss.delta has no effect with loss.type=sapo"),
        (["loss.delta=1.1"], "loss.delta=1.1 must be above 1"),
        (["loss.sapo_temperature_neg=0"], "loss.sapo_temperature_neg must be above 0"),
        (["loss.top_entropy_quantile=1.5"], r"loss.top_entropy_quantile must be at most 1"),
        (["loss.vllm_importance_sampling_clip_min=3"], "clip_min must be below"),
        (["loss.vllm_importance_sampling_clip_max=0"], "clip_max must be above 0"),
        (["loss.kl_in_reward=true"], "loss.kl_in_reward needs a loss.beta above 0"),
        (["loss.sync_ref_model=true"], "loss.sync_ref_model needs a loss.beta or a loss.care.bonus above 0"),
        (["loss.ref_model_sync_steps=0"], "loss.ref_model_sync_steps must be above 0"),
        (["loss.ref_model_mixup_alpha=0"], "loss.ref_model_mixup_alpha must be above 0"),
        (
            ["loss.beta=1", "loss.kl_estimator=k1", "loss.use_bias_correction_kl=false"],
            "kl_estimator=k1 has no",
        ),
        (["loss.beta=1", "loss.kl_in_reward=true", "rewards.kl={fn: brevity}"], "rewards.kl: "),
        (
            ["advantages={baseline: loo, multi_objective_aggregation: normalize_then_sum}"],
            "advantages.baseline=loo does not go with",
        ),
        (
            [
                "loss={beta: 1, kl_in_reward: true}",
                "advantages.multi_objective_aggregation=normalize_then_sum",
            ],
            "loss.kl_in_reward does not go with",
        ),
        (
            ["advantages={min_std: 0.01, multi_objective_aggregation: normalize_then_sum}"],
            "advantages.min_std does not go with",
        ),
        (["optim.robust.strength=1"], "optim.robust.strength has no effect"),
        (
            ["optim.robust={method: l2_sp, spd_accumulates: true}"],
            "optim.robust.spd_accumulates has no effect",
        ),
        (["optim.robust={method: l2_sp, strength: -1}"], "optim.robust.strength must be at least 0"),
        (["optim.robust={method: spd, strength: 1}", "optim.weight_decay=0.1"], "set optim.weight_decay=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *settings])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_with_all_that_has_a_memory_goes_on_as_if_uninterrupted(clips: Path, tmp_path: Path) -> None:
    """The moving reference and the start of SPD, with the other options of the reward's side along the way."""
    overrides = [
        "loss.beta=0.01", "loss.kl_in_reward=true", "loss.kl_estimator=k1", "loss.sync_ref_model=true",
        "loss.ref_model_sync_steps=1", "loss.mask_truncated_completions=true", "advantages.baseline=loo",
        "optim.robust={method: spd, strength: 1.0}", "optim.lr=1e-3", "optim.warmup_steps=0",
        "loss.entropy_coef=0.001", "loss.top_entropy_quantile=0.5", "rollout.max_new_tokens=13",
    ]  # fmt: skip
    rows = run(tmp_path / "whole", clips, *overrides)
    assert any(row.get("optim/projected_frac") for row in rows)
    assert rows[1]["policy/kl"] == pytest.approx(0.0, abs=1e-4) and all(
        math.isfinite(value) for row in rows for value in row.values()
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "final")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000004")
    assert repeatable(run(tmp_path / "resumed", clips, *overrides)) == repeatable(rows)
    for name, weight in weights(tmp_path / "resumed").items():
        assert torch.equal(weight, weights(tmp_path / "whole")[name]), name
