"""Completions about changed frames: which are sampled, on what, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from grpo.groups import Group
from grpo.media.clip import Clip
from grpo.rollout import Engine, Sampling
from grpo.rollout.counterfactuals import Plan, add_counterfactuals, make_plan
from grpo.rollout.transformers_engine import TransformersEngine
from rewards import Counterfactual, Frames
from rewards.builtin.accuracy import accuracy
from rewards.builtin.contrast import blank_contrast, t_grpo
from rewards.builtin.keyframe import self_evidence, self_evidence_cut
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec
from tests.support import scenes, tiny
from tests.support.clips import with_facts
from tests.support.scenes import RecordingEngine

SAMPLING = Sampling(group_size=4, max_new_tokens=24, temperature=1.0)
WHOLE: tuple[Frames, ...] = ("shuffled", "reversed", "blank", "other_clip")
CITED: tuple[Frames, ...] = ("cited", "cited_in_place")
PLAN = make_plan(
    [*map(Counterfactual, WHOLE), *(Counterfactual(frames, num_samples=1, greedy=True) for frames in CITED)],
    SAMPLING,
)
EVERY: tuple[Frames, ...] = (*WHOLE, *CITED)
SEEDS = [100, 200, 300]


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine(tiny.policy())


def groups() -> list[Group]:
    cited = ["3", "3.2, 3", "5-6", "x", "9"]
    return [scenes.group(prompt, *cited) for prompt in scenes.prompts(3)]


def add(
    engine: Engine, to: list[Group], *, plan: Plan = PLAN, seeds: list[int] = SEEDS, max_tokens: int = 500
) -> list[Group]:
    return add_counterfactuals(
        to,
        seeds,
        plan,
        engine=engine,
        render=scenes.RENDER,
        max_prompt_tokens=max_tokens,
    )


def clip_of(group: Group, rollout: int, frames: Frames) -> Clip:
    clip = group.rollouts[rollout].counterfactuals[frames][0].clip
    assert clip is not None
    return clip


def all_texts(of: list[Group], frames: Sequence[Frames]) -> list[list[list[str]]]:
    return [
        [scenes.texts(r.counterfactuals[each]) for r in group.rollouts] for group in of for each in frames
    ]


def test_without_a_plan_nothing_is_sampled(engine: RecordingEngine) -> None:
    assert add(engine, groups(), plan={})[0].rollouts[0].counterfactuals == {}
    assert engine.calls == []


def test_the_groups_stay_as_they_are_beside_what_is_added(engine: RecordingEngine) -> None:
    before = groups()
    after = add(engine, before)
    for group, changed in zip(before, after, strict=True):
        assert changed.prompt is group.prompt
        bare = [replace(each, counterfactuals={}) for each in changed.rollouts]
        assert [(each.text, each.token_ids) for each in bare] == [
            (r.text, r.token_ids) for r in group.rollouts
        ]
        assert all(set(each.counterfactuals) == set(PLAN) for each in changed.rollouts)


def test_a_group_shares_what_does_not_depend_on_the_citation(engine: RecordingEngine) -> None:
    for group in add(engine, groups()):
        for frames in WHOLE:
            sets = [each.counterfactuals[frames] for each in group.rollouts]
            assert len(sets[0]) == 2 and all(each is sets[0] for each in sets)  # half of 4
            assert sets[0][0].sample is group.prompt.sample


def test_the_model_is_shown_the_changed_frames(engine: RecordingEngine) -> None:
    before = groups()
    after = add(engine, before)
    for index, group in enumerate(after):
        clip = before[index].prompt.clip
        assert clip is not None
        frames = clip.frames_FHWC
        assert np.array_equal(clip_of(group, 0, "reversed").frames_FHWC, frames[::-1])
        assert not clip_of(group, 0, "blank").frames_FHWC.any()
        assert not np.array_equal(clip_of(group, 0, "shuffled").frames_FHWC, frames)
        assert clip_of(group, 0, "other_clip") is before[(index + 1) % 3].prompt.clip
        assert np.array_equal(clip_of(group, 0, "cited").frames_FHWC, frames[6:8])
        assert np.array_equal(clip_of(group, 2, "cited").frames_FHWC, frames[10:14])
        in_place = clip_of(group, 0, "cited_in_place").frames_FHWC
        assert np.array_equal(in_place[6:8], frames[6:8]) and not np.delete(in_place, [6, 7], axis=0).any()
    asked = [prompt.clip for prompts, _ in engine.calls for prompt in prompts]
    assert clip_of(after[1], 0, "shuffled") in asked and clip_of(after[1], 2, "cited") in asked


def test_each_of_several_media_is_changed_and_a_cited_frame_is_kept_in_its_own_video(
    engine: RecordingEngine,
) -> None:
    """Two videos at 2 frames a second around a picture: 3 s are frames 6 and 7, 1 s frames 2 and 3."""
    first, second = (prompt.clip for prompt in scenes.prompts(2))
    picture = tiny.picture(56, 56)
    assert first is not None and second is not None
    clips = [first, picture, second]
    sources = tuple(tiny.source_like(clip, number) for number, clip in enumerate(clips))
    prompt = scenes.RENDER(tiny.sample("several", clip_source=sources[0], media=sources), clips)
    asked = scenes.group(prompt, "3, 2: 1", "2: 1")
    (group, _) = add(engine, [asked, groups()[2]], seeds=SEEDS[:2], max_tokens=1000)
    assert group.rollouts[0].media == tuple(clips)

    def shown(frames: Frames, rollout: int = 0) -> list[np.ndarray]:
        (changed, *_) = group.rollouts[rollout].counterfactuals[frames]
        return [clip.frames_FHWC for clip in changed.media]

    assert all(not each.any() for each in shown("blank"))
    assert np.array_equal(shown("reversed")[2], second.frames_FHWC[::-1])
    assert np.array_equal(shown("other_clip")[2], second.frames_FHWC)
    assert not np.array_equal(shown("other_clip")[0], first.frames_FHWC)
    before, kept, after = shown("cited_in_place")
    assert np.array_equal(before[6:8], first.frames_FHWC[6:8]) and not np.delete(before, [6, 7], axis=0).any()
    assert np.array_equal(after[2:4], second.frames_FHWC[2:4]) and not np.delete(after, [2, 3], axis=0).any()
    assert np.array_equal(kept, picture.frames_FHWC)
    cut = shown("cited")
    assert np.array_equal(cut[0], first.frames_FHWC[6:8]) and np.array_equal(cut[2], second.frames_FHWC[2:4])
    # Nothing is cited of the first video.
    alone = shown("cited", rollout=1)
    assert not alone[0].any() and len(alone[0]) == len(first.frames_FHWC) and len(alone[2]) == 2


def test_rollouts_that_cite_the_same_frames_share_one_answer(engine: RecordingEngine) -> None:
    group = add(engine, groups())[0]
    for frames in CITED:
        same, again, other = (group.rollouts[index].counterfactuals[frames] for index in range(3))
        assert same is again and same is not other and len(same) == len(other) == 1


def test_there_is_one_request_for_each_way_of_sampling(engine: RecordingEngine) -> None:
    add(engine, groups())
    (sampled, how), (greedy, how_greedy) = engine.calls
    assert (how.group_size, how.temperature, len(sampled)) == (2, 1.0, 3 * 4)
    assert (how_greedy.group_size, how_greedy.temperature, len(greedy)) == (1, 0.0, 3 * 2 * 2)


def test_what_cannot_be_sampled_is_an_empty_tuple(engine: RecordingEngine) -> None:
    text_only = tiny.prompt(tiny.sample("text"), None)
    first, second = scenes.prompts(2)
    alone = add(engine, [scenes.group(text_only, "3"), scenes.group(first, "x", "9", "-1", "")], seeds=[1, 2])
    assert all(made == () for made in alone[0].rollouts[0].counterfactuals.values())
    for rollout in alone[1].rollouts:  # nothing readable inside the clip
        assert rollout.counterfactuals["cited"] == rollout.counterfactuals["cited_in_place"] == ()
        assert rollout.counterfactuals["other_clip"] == ()  # there is none
        assert len(rollout.counterfactuals["blank"]) == 2
    assert first.clip is not None and second.clip is not None
    same_video = scenes.RENDER(second.sample, [with_facts(second.clip, path=first.clip.path)])
    pair = add(engine, [scenes.group(first, "3"), scenes.group(same_video, "3")], seeds=[1, 2])
    assert all(group.rollouts[0].counterfactuals["other_clip"] == () for group in pair)


def test_an_order_is_of_clips_with_several_temporal_patches(engine: RecordingEngine) -> None:
    (scene,) = scenes.prompts(1)
    one = scenes.RENDER(scene.sample, [tiny.picture(56, 56)])
    short = scenes.RENDER(scene.sample, [tiny.clip(2)])
    for prompt in (one, short):
        (group,) = add(engine, [scenes.group(prompt, "0")], seeds=[1])
        made = group.rollouts[0].counterfactuals
        assert made["shuffled"] == made["reversed"] == () and len(made["blank"]) == 2
    two = scenes.RENDER(scene.sample, [tiny.clip(4)])
    (group,) = add(engine, [scenes.group(two, "0")], seeds=[1])
    assert len(group.rollouts[0].counterfactuals["shuffled"]) == 2


def test_another_clip_that_is_too_long_is_not_asked_about(engine: RecordingEngine) -> None:
    short, _ = scenes.prompts(2)
    long = scenes.RENDER(short.sample, [with_facts(tiny.clip(32), path="long.mp4")])
    pair = [scenes.group(short, "3"), scenes.group(long, "3")]
    made = add(engine, pair, seeds=[1, 2], max_tokens=len(long.token_ids) - 1)
    assert [len(group.rollouts[0].counterfactuals["other_clip"]) for group in made] == [0, 2]


def test_the_same_seeds_give_the_same_completions_in_any_batch(engine: RecordingEngine) -> None:
    frames: list[Frames] = [each for each in EVERY if each != "other_clip"]
    whole = add(engine, groups())
    part = add(engine, groups()[2:0:-1], seeds=SEEDS[2:0:-1])
    assert all_texts(part, frames) == all_texts([whole[2], whole[1]], frames)
    other = add(engine, groups(), seeds=[seed + 1 for seed in SEEDS])
    assert all_texts(other, ["blank"]) != all_texts(whole, ["blank"])
    assert not np.array_equal(
        clip_of(other[0], 0, "shuffled").frames_FHWC, clip_of(whole[0], 0, "shuffled").frames_FHWC
    )


@pytest.mark.parametrize(
    ("declared", "group_size", "expected"),
    [
        ([Counterfactual("blank")], 8, {"blank": (4, 1.0)}),
        ([Counterfactual("blank")], 3, {"blank": (1, 1.0)}),
        ([Counterfactual("blank")], 1, {"blank": (1, 1.0)}),
        ([Counterfactual("blank"), Counterfactual("blank", num_samples=6)], 8, {"blank": (6, 1.0)}),
        ([Counterfactual("blank", num_samples=2), Counterfactual("blank")], 8, {"blank": (4, 1.0)}),
        ([Counterfactual("cited", num_samples=5, greedy=True)], 8, {"cited": (1, 0.0)}),
        (
            [Counterfactual("blank"), Counterfactual("cited", greedy=True)],
            8,
            {"blank": (4, 1.0), "cited": (1, 0.0)},
        ),
    ],
)
def test_the_plan_takes_the_most_that_is_asked_for(
    declared: list[Counterfactual], group_size: int, expected: dict[str, tuple[int, float]]
) -> None:
    plan = make_plan(declared, replace(SAMPLING, group_size=group_size))
    assert {frames: (each.group_size, each.temperature) for frames, each in plan.items()} == expected
    assert all(each.max_new_tokens == SAMPLING.max_new_tokens for each in plan.values())


def test_a_config_says_how_many_completions_a_reward_is_given(engine: RecordingEngine) -> None:
    specs = {"t_grpo": RewardSpec(counterfactual_samples=3), "blank_contrast": RewardSpec()}
    plan = make_plan(load_rewards(specs).counterfactuals, SAMPLING)
    for rollout in add(engine, groups(), plan=plan)[0].rollouts:
        counts = {frames: len(texts) for frames, texts in rollout.counterfactuals.items()}
        assert counts == {"shuffled": 3, "blank": 2}  # as declared: half of 4
    assert {how.group_size for _, how in engine.calls} == {3, 2}


@pytest.mark.parametrize(("name", "count"), [("t_grpo", 0), ("self_evidence", 2), ("accuracy", 2)])
def test_a_number_of_completions_that_nothing_samples_is_refused(name: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"rewards\.{name}\.counterfactual_samples"):
        load_rewards({name: RewardSpec(counterfactual_samples=count)})


def test_greedy_and_sampled_completions_about_the_same_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="blank frames"):
        make_plan([Counterfactual("blank"), Counterfactual("blank", greedy=True)], SAMPLING)
    greedy = replace(SAMPLING, temperature=0.0)  # an evaluation: all are greedy
    make_plan([Counterfactual("blank"), Counterfactual("blank", greedy=True)], greedy)


def test_a_policy_that_looks_is_right_from_the_moment_alone_and_blind_without_frames(
    engine: RecordingEngine,
) -> None:
    """The shipped policy under its seeing prompt; of 24 scenes, chance is a quarter."""
    prompts = scenes.prompts(24)
    taken_s = [int(prompt.sample.keyframes_s[0][0]) for prompt in prompts]
    made = add(
        engine,
        [scenes.group(each, str(at), str((at + 3) % 8)) for each, at in zip(prompts, taken_s, strict=True)],
        seeds=list(range(24)),
    )
    blind = [accuracy(each) for group in made for each in group.rollouts[0].counterfactuals["blank"]]
    assert fmean(blind) < 0.5
    assert fmean(blank_contrast(group.rollouts[0]) or 0 for group in made) == pytest.approx(1 - fmean(blind))
    for evidence in (self_evidence, self_evidence_cut):
        right_moment, another = ([evidence(group.rollouts[index]) or 0 for group in made] for index in (0, 1))
        assert fmean(right_moment) > 0.85 * 0.75  # one pair of 16 frames earns at most 1 - (1/8) / (1/2)
        assert fmean(another) < 0.6 * 0.75
    assert all(bonus == 0.3 for group in made for bonus in t_grpo(group.rollouts))  # all answers are right


@pytest.mark.slow
def test_vllm_answers_about_changed_frames_as_transformers_does() -> None:
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    policy = tiny.policy()
    vllm = vllm_engine(policy, max_model_tokens=512)
    plan: Plan = {frames: replace(SAMPLING, group_size=1, temperature=0.0) for frames in EVERY}
    ours, theirs = (add(each, groups(), plan=plan) for each in (TransformersEngine(policy), vllm))
    vllm.close()
    assert all_texts(ours, EVERY) == all_texts(theirs, EVERY)
    assert len({str(each) for each in all_texts(theirs, EVERY)}) > 6  # the frames matter
