"""Rewards of answers about time."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.commands.check import check_reward
from grpo.groups import Group, Rollout, Sample
from grpo.media.clip import ClipSource
from rewards import hostile
from rewards.builtin.temporal import (
    concordance,
    counting,
    event_order,
    point_in_span,
    temporal_iou,
    timestamp_iou,
)
from rewards.hostile import COMPLETIONS, make_group, moving_clip, synthetic_samples
from rewards.parsing import read_span
from rewards.scoring.loading import load_reward
from rewards.scoring.specs import RewardSpec

CHOICE = synthetic_samples({})[0]
SPAN = replace(CHOICE, task="span", answer="3.0-5.0", options=(), keyframes_s=((1.0, 2.0), (6.0, 7.0)))
NUMBER = replace(CHOICE, task="number", answer="4", options=())
ORDER = replace(CHOICE, task="text", answer="B, A, D, C", options=(), columns={"events": list("BADC")})


def answering(content: str, sample: Sample) -> Rollout:
    return make_group([f"<answer>{content}</answer>"], sample).rollouts[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("3.0-4.5", (3.0, 4.5)),
        (" 3 - 4.5 ", (3.0, 4.5)),
        ("3.0, 4.5", (3.0, 4.5)),
        ("3.0 to 4.5", (3.0, 4.5)),
        ("(3.0, 4.5)", (3.0, 4.5)),
        ("(3.0-4.5)", (3.0, 4.5)),
        ("[3.0, 4.5]", (3.0, 4.5)),
        ("4.5-3.0", None),
        ("4.5, 3.0", None),
        ("3.0", None),
        ("3.0-3.0", None),
        ("3, 4, 5", None),
        ("1-2, 3-4", None),
        ("((3.0, 4.5))", None),
        ("(3.0, 4.5", None),
        ("3.0s-4.5s", None),
        ("from 3.0-4.5", None),
        ("nan-4", None),
        ("", None),
        ("()", None),
    ],
)
def test_a_span_is_read_in_four_notations_and_never_guessed(
    content: str, expected: tuple[float, float] | None
) -> None:
    assert read_span(content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("3.0-5.0", 1.0),
        ("(3.0, 5.0)", 1.0),
        ("4-5", 1 / 2),
        ("4-6", 1 / 3),
        ("2-6", 1 / 2),
        ("5-6", 0.0),
        ("0-999999999", 2 / 999999999),
        ("4", 0.0),
        ("soon", 0.0),
    ],
)
def test_temporal_iou_against_the_answer(content: str, expected: float) -> None:
    assert temporal_iou(answering(content, SPAN)) == pytest.approx(expected)


def test_temporal_iou_against_key_moments_takes_them_together() -> None:
    # 1-2 and 6-7: of 1-7 these are 2 of 6 s; of 6-7.5 1 s of 2.5
    assert temporal_iou(answering("1-7", SPAN), against="keyframes") == pytest.approx(2 / 6)
    assert temporal_iou(answering("6-7.5", SPAN), against="keyframes") == pytest.approx(1 / 2.5)
    assert temporal_iou(answering("1-7", CHOICE), against="keyframes") is not None  # whatever the task


def test_temporal_iou_abstains_where_there_is_no_span_to_compare_with() -> None:
    assert temporal_iou(answering("3-5", CHOICE)) is None
    assert temporal_iou(answering("3-5", replace(SPAN, keyframes_s=())), against="keyframes") is None
    moment = replace(SPAN, keyframes_s=((3.0, 3.0),))
    assert temporal_iou(answering("3-5", moment), against="keyframes") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("3.0-5.0", 1.0),
        ("4-6", 1 / 3 * 7 / 8 * 7 / 8),  # of a clip of 8 s: both borders 1 s off
        ("2-6", 1 / 2 * 7 / 8 * 7 / 8),
        ("3-7", 1 / 2 * 6 / 8),  # the same overlap, by one border alone
        ("5-6", 0.0),
        ("0-999", 0.0),  # the end is further off than the clip is long
        ("4", 0.0),
        ("soon", 0.0),
    ],
)
def test_timestamp_iou_weighs_the_overlap_with_the_borders(content: str, expected: float) -> None:
    (rollout,) = make_group([f"<answer>{content}</answer>"], SPAN, clip=moving_clip()).rollouts
    assert timestamp_iou(rollout) == pytest.approx(expected)
    assert timestamp_iou(replace(rollout, clip=None)) is None
    assert timestamp_iou(replace(rollout, sample=CHOICE)) is None


@pytest.mark.parametrize(
    ("content", "tolerance_s", "expected"),
    [
        ("4", 0.0, 1.0),
        ("3.0", 0.0, 1.0),
        ("5", 0.0, 1.0),
        ("5.1", 0.0, 0.0),
        ("5.1", 0.1, 1.0),
        ("5.2", 0.1, 0.0),
        ("3-5", 0.0, 0.0),  # a span is no point
        ("3, 5", 0.0, 0.0),
        ("x", 0.0, 0.0),
    ],
)
def test_a_point_lies_in_the_span_or_not(content: str, tolerance_s: float, expected: float) -> None:
    assert point_in_span(answering(content, SPAN), tolerance_s=tolerance_s) == expected


def test_the_edge_of_the_tolerance_does_not_depend_on_rounding() -> None:
    sample = replace(SPAN, answer="0.8-0.9")  # 0.8 - 0.1 is 0.7000000000000001
    assert point_in_span(answering("0.7", sample), tolerance_s=0.1) == 1.0


def test_a_point_may_lie_in_any_key_moment() -> None:
    values = [point_in_span(answering(each, SPAN), against="keyframes") for each in ("1.5", "6", "4")]
    assert values == [1.0, 1.0, 0.0]
    assert point_in_span(answering("4", CHOICE)) is None
    assert point_in_span(answering("4", replace(SPAN, keyframes_s=())), against="keyframes") is None


@pytest.mark.parametrize(
    ("content", "iou"),
    [
        ("2: 3.0-5.0", 1.0),
        ("video 2: 4.0-6.0", 1 / 3),
        ("(2: 3.0, 5.0)", 1.0),
        ("3.0-5.0", 0.0),  # without a number it is of the first video
        ("1: 3.0-5.0", 0.0),
        ("3: 3.0-5.0", 0.0),  # there are two
        ("1000003.0-1000005.0", 0.0),  # no other notation for the second video
        ("2:3.0-5.0", 0.0),  # not to be told from a time of day
    ],
)
def test_a_span_is_of_the_video_whose_number_it_has(content: str, iou: float) -> None:
    """Of the second video, which lasts 8 s as the first one does."""
    sources = (ClipSource(video="a.mp4"), ClipSource(frames=("b.png",)), ClipSource(video="c.mp4"))
    fields: dict[str, Any] = {
        "media": sources,
        "clip_source": sources[0],
        "other_keyframes_s": (((3.0, 5.0),),),
    }
    sample = replace(SPAN, answer="2: 3.0-5.0", **fields)
    clips = (moving_clip(), moving_clip())
    rollout = replace(answering(content, sample), clip=clips[0], media=clips)
    assert temporal_iou(rollout) == pytest.approx(iou)
    # Both borders are right, or each is 1 s of 8 s off.
    assert timestamp_iou(rollout) == pytest.approx(iou * (1 if iou == 1 else (1 - 1 / 8) ** 2))
    own = replace(sample, keyframes_s=(), answer="-")
    assert temporal_iou(replace(rollout, sample=own), against="keyframes") == pytest.approx(iou)
    said = ("2: 4", "(2: 4)", "4", "2: 6", "1: 1000004", "1000004")
    assert [point_in_span(answering(each, sample)) for each in said] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert point_in_span(answering("[4]", SPAN)) == 1.0


def test_a_span_may_be_asked_for_about_several_pictures() -> None:
    pictures = (ClipSource(frames=("a.png",)), ClipSource(frames=("b.png",)))
    sample = replace(SPAN, media=pictures, clip_source=pictures[0])
    picture = replace(moving_clip(), facts=replace(moving_clip().facts, is_picture=True))
    rollout = replace(answering("3.0-5.0", sample), clip=picture, media=(picture, picture))
    assert timestamp_iou(rollout) == 1.0


@pytest.mark.parametrize("fn", [temporal_iou, point_in_span])
def test_a_sample_whose_answer_is_no_span_is_named(fn) -> None:
    with pytest.raises(ValueError, match=r"probe-choice \(probe:1\): answer 'soon' is no span"):
        fn(answering("3-5", replace(SPAN, answer="soon")))
    with pytest.raises(ValueError, match="against must be answer or keyframes, not 'question'"):
        fn(answering("3-5", SPAN), against="question")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("B, A, D, C", 1.0),
        ("b,a,d,c", 1.0),
        ("BADC", 0.0),  # a word
        ("(B), (A), (D), (C)", 1.0),
        ("C, D, A, B", 0.0),
        ("A, B, D, C", 5 / 6),  # one of six pairs is swapped
        ("A, B, C, D", 4 / 6),
        ("C, B, A, D", 3 / 6),  # C before B, A and D: three pairs
        ("B, A, D", 0.0),  # one is missing
        ("B, A, D, C, C", 0.0),
        ("B, A, D, D", 0.0),
        ("B, A, D, E", 0.0),
        ("BA DC", 0.0),
        ("", 0.0),
    ],
)
def test_event_order_counts_the_pairs_in_the_right_order(content: str, expected: float) -> None:
    assert event_order(answering(content, ORDER)) == pytest.approx(expected)
    assert event_order(answering(content, ORDER), exact=True) == float(expected == 1)


def test_events_may_be_words() -> None:
    words = replace(ORDER, columns={"events": ["open the door", "Take the cup", "leave"]})
    assert event_order(answering("Open the door , take  the cup, leave.", words)) == 1.0
    assert event_order(answering("take the cup, open the door, leave", words)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", ["Yes, a red cup", "1,000", "3.0, 4.5", "B, A"])
def test_an_answer_with_a_comma_is_no_order_of_events(answer: str) -> None:
    assert event_order(answering(answer, replace(ORDER, answer=answer, columns={}))) is None


@pytest.mark.parametrize("events", ["B, A", ["B"], [], ["B", "b."], ["B", 1], ["B, A", "C"], ["B", " "], 3])
def test_events_that_are_no_order_name_the_sample(events: object) -> None:
    with pytest.raises(ValueError, match=r"probe-choice \(probe:1\): events .* is no list of two or more"):
        event_order(answering("B, A", replace(ORDER, columns={"events": events})))


@given(st.permutations(range(7)))
@settings(max_examples=60, deadline=None)
def test_concordance_is_the_share_of_swaps_that_sorting_does_not_need(order: list[int]) -> None:
    ranks, swaps = list(order), 0
    while any(a > b for a, b in pairwise(ranks)):  # bubble sort
        for i in range(len(ranks) - 1):
            if ranks[i] > ranks[i + 1]:
                ranks[i], ranks[i + 1] = ranks[i + 1], ranks[i]
                swaps += 1
    assert concordance(order) == pytest.approx(1 - swaps / 21)


def test_a_random_order_earns_a_half_on_average() -> None:
    rng = random.Random(0)
    values = [concordance(rng.sample(range(5), 5)) for _ in range(2000)]
    assert sum(values) / 2000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("answer", "content", "max_error_frac", "expected"),
    [
        ("4", "4", 0.0, 1.0),
        ("4", "4.0", 0.0, 1.0),
        ("4", "5", 0.0, 0.0),
        ("4", "5", 0.5, 1 / 2),  # off by a quarter
        ("4", "3", 0.5, 1 / 2),
        ("4", "6", 0.5, 0.0),
        ("4", "100", 0.5, 0.0),
        ("4", "5", 1.0, 3 / 4),
        ("0", "0", 0.5, 1.0),
        ("0", "1", 2.0, 1 / 2),  # relative to 1
        ("4", "4.5", 1.0, 0.0),  # no count
        ("4", "-1", 2.0, 0.0),
        ("4", "four", 1.0, 0.0),
        ("4", "4 or 5", 1.0, 0.0),
        ("4", "٤", 1.0, 0.0),
        ("4", "9" * 99, 1.0, 0.0),
        ("4", "9" * 10_000, 1.0, 0.0),
    ],
)
def test_counting_is_exact_or_graded_by_the_relative_error(
    answer: str, content: str, max_error_frac: float, expected: float
) -> None:
    value = counting(answering(content, replace(NUMBER, answer=answer)), max_error_frac=max_error_frac)
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    "sample", [CHOICE, *(replace(NUMBER, answer=each) for each in ("4.5", "-4", "four"))]
)
def test_counting_abstains_where_there_is_nothing_to_count(sample: Sample) -> None:
    assert counting(answering("4", sample)) is None


@pytest.mark.parametrize(
    ("fn", "sample"),
    [(temporal_iou, SPAN), (point_in_span, SPAN), (event_order, ORDER), (counting, NUMBER)],
)
@pytest.mark.parametrize("text", ["{0}", "<answer>{0}", "<answer>{0}</answer><answer>{0}</answer>", ""])
def test_without_exactly_one_answer_block_nothing_is_answered(fn, sample: Sample, text: str) -> None:
    right = "4" if fn is point_in_span else sample.answer
    assert fn(answering(right, sample)) == 1.0
    assert fn(make_group([text.format(right)], sample).rollouts[0]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("sample", [SPAN, ORDER, NUMBER])
@pytest.mark.parametrize("name", ["temporal_iou", "point_in_span", "event_order", "counting"])
def test_hostile_completions_get_a_finite_number_or_none(name: str, sample: Sample) -> None:
    reward = load_reward(name, RewardSpec())
    group: Group = make_group(list(COMPLETIONS.values()), sample, clip=moving_clip())
    findings, tracebacks = check_reward(reward, [group, *hostile.groups({"events": ["B", "A"]})])
    assert all(each.ok for each in findings if each.check != "range"), (findings, tracebacks)
