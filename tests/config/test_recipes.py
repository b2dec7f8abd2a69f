"""The published recipes: each goes with every job, and its rewards give the totals of a calculation by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.groups import Group, Rollout, Sample
from grpo.media.sampling import QWEN2_5_VL, plan_clip
from rewards.hostile import make_group, moving_clip, synthetic_samples
from rewards.scoring.runner import load_rewards
from tests.support import tiny

RECIPES = sorted((tiny.ROOT / "configs" / "overlays" / "recipes").glob("*.yaml"))
JOBS = sorted((tiny.ROOT / "configs").glob("*.yaml"))
OTHERS = sorted((tiny.ROOT / "configs" / "overlays").glob("*.yaml"))
CHOICE = synthetic_samples({})[0]
"""A question whose right answer is B, about a clip of 8 seconds."""
SPAN = replace(CHOICE, task="span", answer="3.0-5.0", options=(), keyframes_s=())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_recipe_goes_with_every_job_and_with_the_other_overlays(recipe: Path, job: Path) -> None:
    config = load_config([str(job), str(recipe)])
    load_rewards(config.rewards).close()
    assert config != load_config([str(job)])
    for other in OTHERS:
        load_config([str(job), str(recipe), str(other)])


SUPERVISED = {
    "egocross": "egocross_qwen3vl_4b",
    "egocross_lora": "egocross_qwen3vl_4b_lora",
    "alanavlm_evud": "alanavlm_evud_lora",
    "actions_reacher": "actions_reacher",
    "egolm_nymeria": "egolm_nymeria",
    "egolm_synthetic": "egolm_synthetic",
}
"""The supervised recipes, with the jobs that they are laid over."""


def test_every_supervised_recipe_goes_over_its_job() -> None:
    folder = tiny.ROOT / "configs" / "supervised"
    assert {path.stem for path in folder.glob("*.yaml")} == SUPERVISED.keys()
    for name, job in SUPERVISED.items():
        config = load_config([str(tiny.ROOT / "configs" / f"{job}.yaml"), str(folder / f"{name}.yaml")])
        assert (config.loss.type, config.rollout.engine, config.tags) == ("nll", "none", ())


def test_every_recipe_names_its_source_and_stands_on_the_page() -> None:
    page = (tiny.ROOT / "docs" / "recipes.md").read_text()
    for recipe in RECIPES:
        comment = recipe.read_text().partition("\n\n")[0]
        assert "arXiv" in comment and "github.com/" in comment, recipe
        assert f"configs/overlays/recipes/{recipe.name}" in page


def recipe_of(name: str) -> Config:
    return load_config([
        str(tiny.ROOT / "configs" / "egovlm_3b.yaml"),
        str(tiny.ROOT / "configs" / "overlays" / "recipes" / f"{name}.yaml"),
    ])  # fmt: skip


def totals_by(name: str, group: Group) -> tuple[float | None, ...]:
    """The totals of a group by the rewards that the recipe itself names."""
    file = tiny.ROOT / "configs" / "overlays" / "recipes" / f"{name}.yaml"
    own = yaml.safe_load(file.read_text())["rewards"]
    specs = {key: spec for key, spec in recipe_of(name).rewards.items() if key in own}
    rewards = load_rewards(specs)
    (table,) = rewards.score([group])
    rewards.close()
    return table.totals


def answers(letters: str, sample: Sample = CHOICE) -> list[str]:
    return [f"<think>so</think><answer>{letter}</answer>" for letter in letters]


def group_of(
    texts: Sequence[str], sample: Sample, *, lengths: Sequence[int] = (), shuffled: Sequence[str] = ()
) -> Group:
    """A group of completions of given lengths in tokens, beside others about shuffled frames."""
    group = make_group(texts, sample, clip=moving_clip(), tags=("think", "answer"))
    changed = make_group(shuffled, sample, clip=moving_clip()).rollouts
    changes: list[Mapping[str, Any]] = [{"token_ids": tuple(range(length))} for length in lengths]
    rollouts: list[Rollout] = [
        replace(rollout, counterfactuals={"shuffled": changed}, **(changes[index] if changes else {}))
        for index, rollout in enumerate(group.rollouts)
    ]
    return replace(group, rollouts=tuple(rollouts))


def test_video_r1_adds_accuracy_form_order_and_length() -> None:
    texts = [*answers("BB"), "<answer>B</answer>", *answers("A")]
    group = group_of(texts, CHOICE, lengths=(319, 320, 512, 400), shuffled=answers("BA"))
    # 3/4 right >= 0.8 * 1/2, so each right one gets 0.3; the window pays 0.2 to right ones of 320 to 512 tokens.
    assert totals_by("video_r1", group) == pytest.approx((1 + 1 + 0.3, 1 + 1 + 0.3 + 0.2, 1 + 0.3 + 0.2, 1))


def test_t_grpo_pays_right_answers_where_the_order_matters() -> None:
    assert totals_by("t_grpo", group_of(answers("BBAA"), CHOICE, shuffled=answers("BA"))) == (0.3, 0.3, 0, 0)
    # 1/4 < 0.8 * 1/2
    assert totals_by("t_grpo", group_of(answers("BAAA"), CHOICE, shuffled=answers("BA"))) == (0, 0, 0, 0)


def test_time_r1_weighs_the_overlap_with_the_borders() -> None:
    group = group_of([*answers(["4-6", "2-6", "3-5"]), "3-5"], SPAN)  # pyright: ignore[reportArgumentType]
    # Of 8 s: 1/3 of the union, borders 1 s off each; 2/4, 1 s off each; all of it; no blocks at all.
    expected = (1 / 3 * (7 / 8) ** 2 + 1, 1 / 2 * (7 / 8) ** 2 + 1, 1 + 1, 0)
    assert totals_by("time_r1", group) == pytest.approx(expected)
    # Another task in the mixture counts by its accuracy.
    assert totals_by("time_r1", group_of(answers("BA"), CHOICE)) == (2, 1)


@pytest.mark.parametrize(("duration_s", "num_frames"), [(30, 60), (180, 360), (600, 596)])
def test_time_r1s_frames_share_its_pixels_at_two_a_second(duration_s: int, num_frames: int) -> None:
    config = recipe_of("time_r1")
    plan = plan_clip(duration_s * 30, 30.0, 480, 640, config.media, QWEN2_5_VL)
    assert plan.num_frames == num_frames and plan.num_tokens(QWEN2_5_VL) <= 3584
    assert plan.height_px * plan.width_px > 0.7 * 2809856 / num_frames * 2  # each side is rounded down
    assert 3584 + config.rollout.max_new_tokens + 1024 <= config.rollout.max_model_tokens


def test_dapo_takes_off_up_to_half_a_point_in_the_last_fifth_of_the_tokens() -> None:
    config = recipe_of("dapo")
    assert config.rewards["overlong"].args["max_tokens"] == config.rollout.max_new_tokens == 768
    # 768 // 5 = 153: free up to 615, then 1/153 for each token.
    group = group_of(answers("BBBB"), CHOICE, lengths=(10, 615, 615 + 51, 768))
    assert totals_by("dapo", group) == pytest.approx((0, 0, -0.5 * 51 / 153, -0.5))
    assert (config.loss.epsilon, config.loss.upper_epsilon, config.loss.type) == (0.2, 0.28, "dapo")
    assert config.loss.beta == 0 < config.dynamic_sampling.max_resample_times


def test_grpo_care_asks_for_its_bonus_and_a_slow_reference() -> None:
    loss = recipe_of("grpo_care").loss
    assert (loss.care.bonus, loss.care.cap, loss.care.margin, loss.beta) == (0.5, 0.95, 0.01, 0)
    assert (loss.ref_model_sync_steps, loss.ref_model_mixup_alpha) == (10, 0.005)
    assert loss.needs_reference and loss.reference_parts == ("care",)
    assert totals_by("grpo_care", group_of(answers("BA"), CHOICE)) == (2, 1)
