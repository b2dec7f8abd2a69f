"""Supervision: records' targets in the place of rollouts, whose loss is cross-entropy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig, OptimConfig
from grpo.config.load import load_config
from grpo.groups import Prompt, ScoredGroup
from grpo.learner.losses import sampling_metrics
from grpo.rollout import Sampling
from grpo.rollout.given import (
    GivenCompletions,
    NoEngine,
    check_given,
    completions_of,
    follow,
    targets_of,
)
from grpo.run.rollout_files import rollout_rows
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec
from tests.support import tiny
from tests.support.learners import counts_of, gradient_of, make_learner, packed, updated
from tests.support.runs import run, weights
from tests.test_packing import plain_logps

SAMPLING = Sampling(group_size=8, max_new_tokens=64, temperature=1.0)
NLL = LossConfig(type="nll")


def asking(target: Any, name: str = "s", clip: Any = None) -> Prompt:
    return tiny.prompt(tiny.sample(name, columns={"target": target}), clip)


def given(wording: str = "{target}") -> GivenCompletions:
    return GivenCompletions(family=tiny.family(), wording=wording, engine=NoEngine())


def given_groups() -> list[ScoredGroup]:
    """Three questions with one, two and one target; the second is about no clip."""
    prompts = [
        asking("<answer>A</answer>", "a", tiny.clip(8)),
        asking(["<think>so</think><answer>B</answer>", "C"], "b"),
        asking("the blue one", "c", tiny.clip(4, seed=3)),
    ]
    groups = given().generate(prompts, SAMPLING, (0, 1, 2))
    return follow(groups, [tiny.table((0.0,) * len(group.rollouts)) for group in groups])


def test_a_target_becomes_a_completion_that_ends() -> None:
    seen = []
    groups = given("<answer>{target}</answer>").generate(
        [asking(["A", "red"])], SAMPLING, (0,), on_group=seen.append
    )
    (group,) = groups
    assert seen == groups and [each.text for each in group.rollouts] == [
        "<answer>A</answer>",
        "<answer>red</answer>",
    ]
    for rollout in group.rollouts:
        assert rollout.token_ids[-1] in tiny.family().eos_ids and rollout.stopped
        assert tiny.family().decode(rollout.token_ids) == rollout.text
    (scored,) = follow(groups, [tiny.table((None, 0.0))])
    assert scored.advantages == (1.0, 1.0)


@pytest.mark.parametrize("each_family", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
@pytest.mark.parametrize("tokens_per_row", [1, 100_000])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy_on_plain_forwards(
    tokens_per_row: int, each_family: str
) -> None:
    groups = given_groups()
    exact = tiny.policy(seed=1).double()
    # Each completion in a forward of its own, through the unpatched model and F.cross_entropy.
    plain = torch.cat([*plain_logps(exact, groups).values()])
    (-plain.mean()).backward()
    policy = tiny.policy(seed=1)
    figures = updated(policy, packed(groups, tokens_per_row=tokens_per_row), counts_of(groups), loss=NLL)
    assert figures["loss"] == pytest.approx(float(-plain.mean()), rel=1e-5)
    expected, found = gradient_of(exact), gradient_of(policy)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_equal_targets_of_two_questions_keep_their_own_log_probs() -> None:
    prompts = [
        asking("<answer>A</answer>", "a", tiny.clip(8)),
        asking("<answer>A</answer>", "b", tiny.clip(4)),
    ]
    groups = given().generate(prompts, SAMPLING, (0, 1))
    scored = follow(groups, [tiny.table((0.0,))] * 2)
    expected = [logps_T.detach() for logps_T in plain_logps(tiny.policy(seed=1), scored).values()]
    result = make_learner(tiny.policy(seed=1), loss=NLL).update(packed(scored), counts_of(scored), 1)
    stored = [row["learner_logprobs"] for each in scored for row in rollout_rows(each, result.logps)]
    assert not torch.allclose(expected[0], expected[1])
    for found, logps_T in zip(stored, expected, strict=True):
        torch.testing.assert_close(torch.tensor(found), logps_T, rtol=1e-4, atol=1e-5)


def test_updates_make_the_targets_likely() -> None:
    groups = given_groups()
    optim = OptimConfig(lr=1e-3, schedule="constant")
    learner = make_learner(tiny.policy(seed=1), loss=NLL, optim=optim)
    losses = [
        learner.update(packed(groups), counts_of(groups), step).metrics.reduced()["loss"]
        for step in range(1, 9)
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_nothing_is_said_of_an_engine_that_sampled_nothing() -> None:
    (row,) = packed(given_groups())
    figures = sampling_metrics(row, tiny.policy(seed=1)(row), NLL).reduced()
    assert "policy/entropy" in figures and not [name for name in figures if name.startswith("sampler/")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"made-up:s: sample s: no 'target': loss.type=nll trains on the texts that records give"),
        ({"target": []}, "sample s: no 'target'"),
        ({"target": None}, "sample s: no 'target'"),
        ({"target": ["A", " "]}, "sample s: an empty 'target'"),
        ({"target": "\n"}, "sample s: an empty 'target'"),
        ({"target": 3}, "sample s: 'target' must be a text or a list of texts"),
        ({"target": ["A", 3]}, "sample s: 'target' must be a text or a list of texts"),
    ],
)
def test_a_record_without_targets_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets_of(tiny.sample(columns=columns))


def test_a_target_that_is_too_long_or_shows_a_clip_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"sample s: its 'target' has \d+ tokens, and rollout.max_new_tokens is 1"
    ):
        completions_of(
            tiny.sample(columns={"target": "AA"}), tiny.family(), wording="{target}", max_new_tokens=1
        )
    pad = tiny.family().processor.video_token
    with pytest.raises(ValueError, match=r"made-up:s: sample s: a completion must not have the token"):
        completions_of(
            tiny.sample(columns={"target": pad}), tiny.family(), wording="{target}", max_new_tokens=9
        )


def test_a_reward_that_compares_with_sampled_completions_is_refused() -> None:
    rewards = load_rewards({"order": RewardSpec(fn="t_grpo")}).rewards
    with pytest.raises(ValueError, match=r"rewards.order compares with sampled completions"):
        check_given([], tiny.family(), rewards, wording="{target}", max_new_tokens=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.engine=none"], "rollout.engine=none: loss.type=dapo samples completions"),
        (["loss.type=nll", "rollout.engine=none"], "can't answer the questions of data.eval"),
        (["loss.type=nll", "eval.every_steps=0"], "samples nothing: set rollout.engine=none"),
        (["loss.type=nll", "loss.beta=0.1"], "loss.beta is for sampled completions"),
        (["loss.type=nll", "rollout.temperature=0.7"], "rollout.temperature is for sampled completions"),
        (["loss.type=nll", "dynamic_sampling.skip_epochs=1"], "dynamic_sampling.skip_epochs is for sampled"),
        (["loss.type=nll", "data.target=<{targets}>"], "data.target: 'targets' in"),
    ],
)
def test_settings_that_ask_given_completions_for_more_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *settings])


def with_targets(clips: Path, folder: Path) -> str:
    """The demo's training questions with a target each, as a setting."""
    lines = (clips / "train.jsonl").read_text().splitlines()
    rows = [
        {**row, "video": str(clips / row["video"]), "target": f"<answer>{row['answer']}</answer>"}
        for row in map(json.loads, lines)
    ]
    (folder / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train=[{{reader: jsonl, path: {folder}/given.jsonl, media_root: /}}]"


def test_a_run_follows_targets_and_its_engine_answers_held_out_questions(clips: Path, tmp_path: Path) -> None:
    overrides = [with_targets(clips, tmp_path), "loss.type=nll", "optim.lr=1e-3", "optim.warmup_steps=0"]
    rows = run(tmp_path / "run", clips, *overrides)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[4]["loss"] < rows[1]["loss"] and "sampler/gap_mean" not in rows[1]
    # The targets themselves are scored too: they are right, and lack two of the blocks that the demo asks for.
    assert (rows[1]["rewards/accuracy/mean"], rows[1]["rewards/format/mean"]) == (1.0, 0.0)
    assert [row["step"] for row in rows if "eval/heldout/accuracy" in row] == [0, 2, 4]
    # Without an evaluation there is no engine, and the weights are the same.
    run(tmp_path / "alone", clips, *overrides, "rollout.engine=none", "eval.every_steps=0")
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weight, weights(tmp_path / "alone")[name]), name
