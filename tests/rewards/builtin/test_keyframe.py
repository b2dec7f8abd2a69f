"""Rewards of the cited moments."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.commands.check import check_reward
from grpo.groups import Rollout
from grpo.media.clip import Clip, ClipSource
from rewards import hostile
from rewards.builtin.keyframe import (
    few_moments,
    hits,
    keyframe,
    keyframe_distance,
    keyframe_hit,
    keyframe_iou,
    keyframe_scores,
    num_pairs,
)
from rewards.builtin.moments import Span
from rewards.hostile import COMPLETIONS, make_group, moving_clip, synthetic_samples, with_counterfactuals
from rewards.scoring.loading import load_reward
from rewards.scoring.specs import RewardSpec

SAMPLE = synthetic_samples({})[0]
CLIP = moving_clip()  # 8 seconds
ONE: tuple[Span, ...] = ((3.0, 4.0),)
TWO: tuple[Span, ...] = ((1.0, 1.0), (5.0, 6.0))
SCORES = [[0, 0.2], [2, 0.6], [4, 1.0], [6, 0.2]]  # of frames; scaled: 0, 1/2, 1, 0


def value(cited: str, annotated: tuple[Span, ...], tolerance_s: float = 0.5) -> float | None:
    sample = replace(SAMPLE, keyframes_s=annotated)
    text = f"<think>x</think><keyframes>{cited}</keyframes><answer>B</answer>"
    return keyframe(make_group([text], sample, clip=CLIP).rollouts[0], tolerance_s=tolerance_s)


@pytest.mark.parametrize(
    ("cited", "annotated", "expected"),
    [
        ("3.5", ONE, 1.0),
        ("2.5", ONE, 1.0),  # 3.0 - 0.5
        ("4.5", ONE, 1.0),
        ("2.4", ONE, 0.0),
        ("4.6", ONE, 0.0),
        ("3, 7", ONE, 2 / 3),  # precision 1/2, recall 1: 2 * (1/2) / (3/2)
        ("3, 7, 7", ONE, 1 / 2),  # precision 1/3, recall 1: 2 * (1/3) / (4/3)
        ("3, 3, 3, 7", ONE, 2 / 5),  # one of four is needed: precision 1/4, recall 1: 2 * (1/4) / (5/4)
        ("3, 3.5, 4", ONE, 1 / 2),  # near repeats too
        ("0,1,2,3,4,5,6,7", ONE, 2 / 9),  # one of eight: 2 / (8 + 1)
        ("1, 1, 5.5", TWO, 4 / 5),  # two of three, recall 1: 2 * (2/3) / (5/3)
        ("1", TWO, 2 / 3),  # precision 1, recall 1/2
        ("1, 5.5", TWO, 1.0),
        ("1, 3, 5.5, 8", TWO, 2 / 3),  # precision 2/4, recall 2/2
        ("1, 3", TWO, 1 / 2),  # precision 1/2, recall 1/2
        ("3.0-4.0", ONE, 1.0),
        ("2.5-4.5", ONE, 1.0),
        ("3.2-3.4", ONE, 1.0),
        ("2.4-4.0", ONE, 0.0),  # begins too early
        ("0.0-8.0", ONE, 0.0),
        ("0.5-6.5", TWO, 0.0),  # one span over both hits neither
        ("0.5-1.5, 4.5-6.5", TWO, 1.0),
    ],
)
def test_the_value_is_the_f1_of_citations_and_annotation(
    cited: str, annotated: tuple[Span, ...], expected: float
) -> None:
    assert value(cited, annotated) == pytest.approx(expected)


def test_one_citation_may_hit_two_overlapping_spans() -> None:
    overlapping = ((3.0, 4.0), (3.5, 6.0))
    assert value("3.5", overlapping) == 1.0
    assert value("3.5, 3.5", overlapping) == pytest.approx(2 / 3)
    assert value("2.6, 5.5", overlapping) == value("2.6, 3.5", overlapping) == 1.0  # one for each


def test_frames_annotated_next_to_each_other_may_all_be_cited() -> None:
    frames = ((3.0, 3.0), (3.5, 3.5), (4.0, 4.0))
    assert value("3, 3.5, 4", frames) == value("3.5", frames) == 1.0
    assert value("3, 3.5, 4, 4.5", frames) == pytest.approx(6 / 7)  # precision 3/4


def test_the_edge_of_the_tolerance_does_not_depend_on_rounding() -> None:
    assert value("0.7", ((0.8, 0.8),), tolerance_s=0.1) == 1.0  # 0.8 - 0.1 is 0.7000000000000001
    assert value("0.69", ((0.8, 0.8),), tolerance_s=0.1) == 0.0


def test_a_moment_outside_the_clip_is_a_miss_even_within_tolerance() -> None:
    assert value("-0.2", ((0.0, 1.0),)) == 0.0
    assert value("8.2", ((7.0, 8.0),)) == 0.0
    assert value("7.5-8.2", ((7.0, 8.0),)) == 0.0
    assert value("8.0", ((7.0, 8.0),)) == 1.0
    assert value("0.5, -3", ((0.0, 1.0),)) == pytest.approx(2 / 3)  # counted as a citation: precision 1/2


def test_without_a_clip_only_negative_moments_are_outside() -> None:
    sample = replace(SAMPLE, keyframes_s=((100.0, 101.0),))
    group = make_group(["<keyframes>100</keyframes>", "<keyframes>-1, 100</keyframes>"], sample)
    assert [keyframe(each) for each in group.rollouts] == [1.0, pytest.approx(2 / 3)]


def test_a_sample_without_annotation_abstains() -> None:
    assert value("3", ()) is None
    assert value("nonsense", ()) is None


@pytest.mark.parametrize(
    "cited", ["", "three", "3,", "3; 4", "٣", "nan", "1e999", "9" * 10_000, "4-3", "0:03"]
)
def test_what_cannot_be_read_is_worth_nothing(cited: str) -> None:
    assert value(cited, ONE) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "3.5",
        "<keyframes>3.5",
        "<keyframes>3.5</keyframes><keyframes>3.5</keyframes>",
        "<Keyframes>3.5</Keyframes>",
    ],
)
def test_without_exactly_one_block_nothing_is_cited(text: str) -> None:
    assert keyframe(make_group([text], SAMPLE, clip=CLIP).rollouts[0]) == 0.0


def test_of_the_hostile_completions_only_those_that_cite_the_moment_earn_something() -> None:
    group = make_group(list(COMPLETIONS.values()), SAMPLE, clip=CLIP)  # annotated: 3.0-4.5 and 7.0
    values = {label: keyframe(each) for label, each in zip(COMPLETIONS, group.rollouts, strict=True)}
    earned = {label: each for label, each in values.items() if each}
    # 3 or 3.5: precision 1, recall 1/2. "every moment" cites 0.0, 0.1, ... 199.9; of these two are paired
    # with the two spans: precision 2 / 2000, recall 1: 0.002 / 1.001.
    assert earned.pop("every moment") == pytest.approx(0.002 / 1.001)
    assert list(earned.values()) == pytest.approx([2 / 3] * len(earned))
    assert set(earned) == {
        *("right", "reversed", "all letters", "letter outside", "full-width letter", "emoji"),
        *("long reasoning", "span", "order", "right to left"),
        *("unclosed answer", "invisible answer"),  # what is wrong there is the other block
    }


moments = st.integers(0, 32).map(lambda quarters: quarters / 4)
spans = st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair)))
annotations = st.lists(spans, min_size=1, max_size=3).map(tuple)


@given(st.lists(spans, min_size=1, max_size=8), annotations, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_citations_does_not_matter_and_a_miss_more_never_pays(cited, annotated, random) -> None:
    def text(spans: list[Span]) -> str:
        return ", ".join(f"{start}-{end}" for start, end in spans)

    before = value(text(cited), annotated)
    assert before is not None and 0 <= before <= 1
    assert value(text(random.sample(cited, len(cited))), annotated) == before
    after = value(text([*cited, (-1.0, -1.0)]), annotated)
    assert after == 0 == before or (after is not None and after < before)


@given(spans, spans, st.integers(0, 8).map(lambda quarters: quarters / 4))
@settings(max_examples=100, deadline=None)
def test_a_span_never_hits_where_its_middle_misses(cited: Span, annotated: Span, tolerance_s: float) -> None:
    middle_s = (cited[0] + cited[1]) / 2
    assert not hits(cited, annotated, tolerance_s) or hits((middle_s, middle_s), annotated, tolerance_s)


@given(st.sets(spans, min_size=1, max_size=4), annotations)
@settings(max_examples=100, deadline=None)
def test_as_many_citations_are_paired_with_spans_as_can_be(cited: set[Span], annotated) -> None:
    padded = [*cited, None, None, None]  # as many of None as there are spans at most
    most = max(
        sum(
            moment is not None and hits(moment, span, 0.5)
            for moment, span in zip(some, annotated, strict=True)
        )
        for some in permutations(padded, len(annotated))
    )
    assert num_pairs([*cited], annotated, 0.5) == most


@pytest.mark.parametrize("fn", [keyframe, keyframe_distance, keyframe_hit, keyframe_iou])
@given(st.lists(spans, min_size=1, max_size=5), annotations, st.integers(0, 4), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_repeating_a_citation_never_pays(fn, cited, annotated, index: int, times: int) -> None:
    def earned(spans: list[Span]) -> float:
        return fn(citing(", ".join(f"{start}-{end}" for start, end in spans), keyframes_s=annotated))

    assert earned([*cited, *[cited[index % len(cited)]] * times]) <= earned(cited) + 1e-12


def citing(cited: str, answer: str = "B", **fields: Any) -> Rollout:
    sample = replace(SAMPLE, **fields)
    text = f"<think>x</think><keyframes>{cited}</keyframes><answer>{answer}</answer>"
    return make_group([text], sample, clip=CLIP).rollouts[0]


@pytest.mark.parametrize(
    ("cited", "annotated", "tolerance_s", "expected"),
    [
        ("3-4", ONE, 0.0, 1.0),
        ("3-4", ONE, 0.5, 1.0),
        ("3-5", ONE, 0.0, 1 / 2),
        ("3.5-5", ONE, 0.0, 0.5 / 2),  # 3.5-4 of 3-5
        ("3-3.5, 3.25-4", ONE, 0.0, 1.0),  # an overlap counts once
        ("0-8", ONE, 0.0, 1 / 8),
        ("3.5", ONE, 0.5, 1 / 2),  # 3-4 of 2.5-4.5
        ("3.5, 3.5", ONE, 0.5, 1 / 2),
        ("3.5, 7", ONE, 0.5, 1 / 3),  # 3-4 and 6.5-7.5 against 2.5-4.5: 1 of 3
        ("5", ONE, 0.5, 0.0),  # 4.5-5.5 touches 2.5-4.5
        ("1, 5-6", TWO, 0.5, 1.0),
        ("1", TWO, 0.5, 1 / 3),  # 0.5-1.5 of these and 4.5-6.5
        ("1", TWO, 0.0, 0.0),  # of no length
        ("3-9", ONE, 0.0, 0.0),  # ends outside the clip, whatever lies inside
        ("3-4, 9-10", ONE, 0.0, 1 / 2),
    ],
)
def test_iou_is_what_is_cited_and_annotated_over_what_is_either(
    cited: str, annotated: tuple[Span, ...], tolerance_s: float, expected: float
) -> None:
    value = keyframe_iou(citing(cited, keyframes_s=annotated), tolerance_s=tolerance_s)
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cited", "k", "expected"),
    [
        ("3.5", 1, 1.0),
        ("7, 3.5", 1, 0.0),
        ("7, 3.5", 2, 1.0),
        ("7, 7, 3.5", 2, 0.0),
        ("3.5, 0, 1, 2", 1, 1.0),  # what comes later does not matter
        ("4.5", 1, 1.0),
        ("4.6", 1, 0.0),
        ("9, 3.5", 1, 0.0),  # a moment outside the clip takes its place
        ("0-8", 1, 0.0),
        ("3.5", 9, 1.0),
    ],
)
def test_hit_looks_at_the_first_k_citations(cited: str, k: int, expected: float) -> None:
    assert keyframe_hit(citing(cited, keyframes_s=ONE), k=k) == expected


E = math.exp(-1)


@pytest.mark.parametrize(
    ("cited", "annotated", "expected"),
    [
        ("3.5", ONE, 1.0),
        ("5", ONE, E),
        ("2", ONE, E),
        ("2-5", ONE, E),  # sticks out by 1 to either side
        ("3.5, 5", ONE, 2 * 0.5 / 1.5),  # precision 1/2: the span has a nearer one; recall 1
        ("5, 3.5, 3.5", ONE, 2 * (1 / 3) / (4 / 3)),
        ("1, 5.5", TWO, 1.0),
        ("1", TWO, 2 * (1 + math.exp(-4)) / 2 / (1 + (1 + math.exp(-4)) / 2)),  # the other is 4 s off
        ("3.5, 9", ONE, 2 * 0.5 / 1.5),  # outside the clip: as if infinitely far
        ("9", ONE, 0.0),
    ],
)
def test_distance_grades_the_f1(cited: str, annotated: tuple[Span, ...], expected: float) -> None:
    assert keyframe_distance(citing(cited, keyframes_s=annotated)) == pytest.approx(expected)


def test_a_larger_scale_forgives_more() -> None:
    assert keyframe_distance(citing("6", keyframes_s=ONE), scale_s=2) == pytest.approx(E)


@pytest.mark.parametrize(
    ("cited", "expected"),
    [
        ("3", 0.0),
        ("1, 2, 3", 0.0),
        ("1, 2, 3, 4", -1 / 3),
        ("1, 1, 1, 1", -1 / 3),
        ("1, 2, 3, 4, 5, 6", -1.0),
        ("1, 2, 3, 4, 5, 6, 7, 8", -1.0),
        ("1-3", 0.0),  # 2 of 8 s: a quarter
        ("1-4", -1 / 2),
        ("0-8", -1.0),
        ("1-3, 2-3, 1-2", 0.0),  # the same seconds
        ("x", 0.0),
        ("", 0.0),
    ],
)
def test_few_moments_punishes_many_and_long_citations(cited: str, expected: float) -> None:
    assert few_moments(citing(cited)) == pytest.approx(expected)


def test_few_moments_abstains_where_no_moments_are_asked_for() -> None:
    group = make_group([COMPLETIONS["every moment"]], SAMPLE, clip=CLIP, tags=("think", "answer"))
    assert few_moments(group.rollouts[0]) is None


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (keyframe_hit, {"k": 0}),
        (keyframe_distance, {"scale_s": 0}),
        (few_moments, {"max_moments": 0}),
        (few_moments, {"max_frac": 0}),
        (keyframe_scores, {"max_moments": 0}),
        (keyframe_scores, {"tolerance_s": -1}),
    ],
)
def test_arguments_that_mean_nothing_are_refused(fn, args: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(args))):
        fn(citing("3"), **args)


ANNOTATED = [keyframe, keyframe_iou, keyframe_hit, keyframe_distance]


@pytest.mark.parametrize("fn", ANNOTATED)
def test_the_others_too_need_an_annotation_and_something_readable(fn) -> None:
    assert fn(citing("3", keyframes_s=())) is None
    assert fn(citing("three")) == fn(citing("")) == fn(citing("-3")) == 0.0


@pytest.mark.parametrize("fn", ANNOTATED)
@given(cited=st.lists(spans, min_size=1, max_size=5), annotated=annotations.map(set).map(tuple))
@settings(max_examples=60, deadline=None)
def test_values_lie_between_0_and_1_and_are_1_for_the_annotation_itself(fn, cited, annotated) -> None:
    def cite(spans) -> Rollout:
        return citing(", ".join(f"{start}-{end}" for start, end in spans), keyframes_s=annotated)

    assert 0 <= fn(cite(cited)) <= 1 + 1e-9
    assert fn(cite(annotated)) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["keyframe_iou", "keyframe_hit", "keyframe_distance", "few_moments", "keyframe_scores", "self_evidence"]
    + ["self_evidence_cut"],
)
def test_hostile_completions_get_a_finite_number_or_none(name: str) -> None:
    reward = load_reward(name, RewardSpec())
    groups = hostile.groups({"frame_scores": SCORES} if name == "keyframe_scores" else {})
    findings, tracebacks = check_reward(
        reward, [with_counterfactuals(each, reward.counterfactuals) for each in groups]
    )
    assert all(finding.ok for finding in findings), (findings, tracebacks)


def several(cited: str, **fields: Any) -> Rollout:
    """A completion about a video of 8 s, a picture, and a second video of 8 s."""
    first, second = moving_clip(), moving_clip()
    picture = Clip(replace(moving_clip().facts, is_picture=True), moving_clip().frames_FHWC)
    sources = (ClipSource(video="a.mp4"), ClipSource(frames=("b.png",)), ClipSource(video="c.mp4"))
    sample = replace(SAMPLE, keyframes_s=ONE, media=sources, clip_source=sources[0], **fields)
    text = f"<think>x</think><keyframes>{cited}</keyframes><answer>B</answer>"
    (rollout,) = make_group([text], sample, clip=first).rollouts
    return replace(rollout, media=(first, picture, second))


@pytest.mark.parametrize(
    ("cited", "expected"),
    [
        ("3.5, 2: 5.5", 1.0),  # without a number, a time is of the first video
        ("1: 3.5, video 2: 5.2-5.8", 1.0),
        ("3.5, 5.5", 1 / 2),  # precision 1/2, recall 1/2
        ("2: 3.5", 0.0),
        ("2: 5.5", 2 / 3),  # precision 1, recall 1/2
        ("3.5, 2: 5.5, 2: 9.0", 4 / 5),  # behind the second video's end: precision 2/3, recall 1
        ("3.5, 2: 5.5, 2: 1000005.5", 4 / 5),
        ("3.5, 1000005.5", 1 / 2),  # no other notation for the second video: precision 1/2, recall 1/2
        ("3: 5.5", 0.0),  # there are two
        ("2:5.5", 0.0),  # not to be told from a time of day
    ],
)
def test_cited_moments_are_of_the_video_whose_number_they_have(cited: str, expected: float) -> None:
    rollout = several(cited, other_keyframes_s=(((5.0, 6.0),),))
    assert keyframe(rollout) == pytest.approx(expected)


def test_the_rewards_of_moments_know_several_videos() -> None:
    both = {"other_keyframes_s": (((5.0, 6.0),),)}
    assert keyframe_hit(several("2: 5.5", **both)) == 1.0 and keyframe_hit(several("2: 3.5", **both)) == 0.0
    # Cited and annotated are 1 s of each video, widened by 0.5 s to both sides: 4 s of 4.
    assert keyframe_iou(several("3-4, 2: 5-6", **both)) == pytest.approx(1.0)
    assert keyframe_iou(several("3-4, 2: 0-1", **both)) == pytest.approx(1 / 3)  # 2 of 2 + 2 + 2 s
    # A quarter of 16 s may be covered; 8 s are twice that.
    assert few_moments(several("2: 0-8", **both)) == pytest.approx(-1.0)
    # Scores are of the first video's frames: the second one's moments select none.
    scored = {"columns": {"frame_scores": SCORES}, **both}
    assert keyframe_scores(several("4", **scored)) == pytest.approx(1.0)
    assert keyframe_scores(several("2: 4", **scored)) == pytest.approx(0.0)
