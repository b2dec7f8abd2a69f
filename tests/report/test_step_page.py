"""What the page is told of a step: every completion's figures in columns, and each group in full."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from grpo.groups import Rollout, ScoredGroup
from grpo.media.clip import ClipSource
from grpo.report.page_files import json_of
from grpo.report.step_page import StepPage, step_page
from grpo.report.tokens import Pieces, find_tokenizer
from rewards.scoring.specs import RewardSpec
from tests.support import tiny
from tests.support.stored_runs import scored

SPECS = {"accuracy": RewardSpec(), "bonus": RewardSpec(only_if="accuracy")}


def group_of(texts: list[str], totals: list[float], **changes: object) -> ScoredGroup:
    group = scored(texts, totals)
    rollouts = tuple(replace(each, **changes) for each in group.group.rollouts)  # pyright: ignore[reportArgumentType]
    return replace(group, group=replace(group.group, rollouts=rollouts))


def page_of(*groups: ScoredGroup, **options: object) -> StepPage:
    return step_page(groups, SPECS, None, **options)  # pyright: ignore[reportArgumentType]


def test_columns_have_a_value_for_each_completion_of_all_groups():
    page = page_of(scored(["ab", "<answer> B </answer>"], [1.0, 0.0]), scored(["c"], [0.5]))
    columns = page.columns["columns"]
    assert page.columns["groups"]["size"] == [2, 1]
    assert columns["total"] == [1.0, 0.0, 0.5] and columns["raw/accuracy"] == [1.0, 0.0, 0.5]
    assert columns["advantage"] == [0.5, -0.5, 0.0]
    assert columns["answer"] == ["", "B", ""] and columns["right"] == [1, 0, 1]
    assert columns["tokens"] == [2, 20, 1] and columns["logp"] == [-1.0, -1.0, -1.0]
    assert columns["gap"] == [None, None, None]


def test_the_gap_is_the_mean_distance_to_the_learners_log_probs():
    page = page_of(scored(["ab", "c"], [1.0, 0.0]), learner_logps=[[-1.5, -0.9], None])
    # (0.5 + 0.1) / 2
    assert page.columns["columns"]["gap"] == [0.3, None]
    assert page.content["groups"][0]["completions"][0]["learner"] == [-1.5, -0.9]


def test_a_step_that_the_learner_diverged_in_is_shown_without_its_numbers():
    page = page_of(scored(["ab"], [1.0]), learner_logps=[[math.nan, -math.inf]])
    assert json_of([page.columns, page.content])
    assert page.content["groups"][0]["completions"][0]["learner"] == [None, None]
    assert page.columns["columns"]["gap"] == [None]


def test_without_a_reward_of_accuracy_the_strict_one_judges():
    group = scored(["<think>x</think><answer>A</answer>", "<answer>B</answer>"], [1.0, 0.0])
    table = replace(group.table, columns={"other": (0.0, 1.0)}, parts={"other": (0.0, 1.0)})
    assert page_of(replace(group, table=table)).columns["columns"]["right"] == [1, 0]


def test_a_gate_says_on_which_completions_it_is_open():
    group = scored(["a", "b"], [1.0, 0.0])
    columns = {"accuracy": (1.0, 0.0), "bonus": (0.7, 0.7)}
    table = replace(group.table, columns=columns, parts={"accuracy": (1.0, 0.0), "bonus": (0.7, 0.0)})
    (shown,) = page_of(replace(group, table=table)).content["groups"]
    assert shown["gates"] == {"bonus": {"only_if": "accuracy", "only_unless": None, "open": [True, False]}}
    assert [each["part"]["bonus"] for each in shown["completions"]] == [0.7, 0.0]


def test_answers_about_changed_frames_that_are_shared_stand_once():
    def about(text: str) -> tuple[Rollout, ...]:
        return scored([text], [0.0]).group.rollouts

    same = about("<answer>A</answer>")
    group = scored(["a", "b"], [1.0, 0.0])
    rollouts = [
        replace(each, counterfactuals={"shuffled": same, "blank": about(text)})
        for each, text in zip(group.group.rollouts, ("x", "y"), strict=True)
    ]
    (shown,) = page_of(replace(group, group=replace(group.group, rollouts=tuple(rollouts)))).content["groups"]
    assert [each["frames"] for each in shown["counterfactuals"]] == ["shuffled", "blank", "blank"]
    assert [each["counterfactuals"] for each in shown["completions"]] == [[0, 1], [0, 2]]
    assert shown["counterfactuals"][0]["answers"] == [
        {"text": "<answer>A</answer>", "answer": "A", "right": 1}
    ]


def test_cited_and_annotated_moments_and_the_frames_times_are_told():
    clip = tiny.clip(num_frames=4)
    sample = tiny.sample(clip_source=ClipSource(video="x.mp4"), keyframes_s=((0.5, 1.0),))
    group = scored(["<keyframes>0.5, 1 to 1.5</keyframes>"], [1.0], sample, clip)
    page = page_of(group)
    (shown,) = page.content["groups"]
    assert shown["annotated"] == [[0.5, 1.0]]
    assert shown["completions"][0]["cited"] == [[0.5, 0.5], [1.0, 1.5]]
    assert shown["clip"]["times"] == [0.0, 0.5, 1.0, 1.5] and shown["clip"]["size"] == [56, 56]
    assert [*page.clips] == [shown["clip"]["name"]]


def test_several_media_are_told_in_order_each_with_the_moments_of_its_own():
    sources = (
        ClipSource(frames=("now.png",)),
        ClipSource(video="a.mp4"),
        ClipSource(video="b.mp4", start_s=3.0),
    )
    sample = tiny.sample(
        clip_source=sources[1], media=sources, keyframes_s=((0.5, 1.0),), other_keyframes_s=(((0.0, 0.5),),)
    )
    clips = (tiny.picture(), tiny.clip(num_frames=4), tiny.clip(num_frames=6))
    group = scored(["<keyframes>0.5, 2: 1 to 1.5</keyframes>"], [1.0], sample, clips[1])
    prompt = replace(group.group.prompt, media=clips)
    rollouts = tuple(replace(each, media=clips) for each in group.group.rollouts)
    page = page_of(replace(group, group=replace(group.group, prompt=prompt, rollouts=rollouts)))
    (shown,) = page.content["groups"]
    assert [each["video"] for each in shown["media"]] == [None, 0, 1]
    assert [each["annotated"] for each in shown["media"]] == [[], [[0.5, 1.0]], [[0.0, 0.5]]]
    assert [each["clip"]["picture"] for each in shown["media"]] == [True, False, False]
    assert [len(each["clip"]["times"]) for each in shown["media"]] == [1, 4, 6]
    assert shown["completions"][0]["cited_by_video"] == [[[0.5, 0.5]], [[1.0, 1.5]]]
    assert [*page.clips] == [each["clip"]["name"] for each in shown["media"]]


def test_a_category_is_the_records_own_or_the_task():
    own = tiny.sample(columns={"category": "order", "type": 3})
    page = page_of(scored(["a"], [1.0], own), scored(["a"], [1.0]))
    assert page.columns["groups"]["category"] == ["order", "choice"]


def test_the_texts_of_tokens_are_those_of_the_models_tokenizer(tmp_path: Path):
    found = find_tokenizer(str(tmp_path / "nothing"), str(tiny.BASE_POLICY))
    assert isinstance(found, Tokenizer)
    ids = found.encode("<think>red</think>", add_special_tokens=False).ids
    pieces = Pieces(found)
    assert "".join(pieces.of(ids)[each] for each in ids) == "<think>red</think>"
    assert find_tokenizer(str(tmp_path / "nothing")) is None
