"""The built-in `keyframe`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.hostile import COMPLETIONS, black_clip, make_group, synthetic_samples
from rewards.keyframe import Span, hits, keyframe

SAMPLE = synthetic_samples({})[0]
CLIP = black_clip()  # 8 seconds
ONE: tuple[Span, ...] = ((3.0, 4.0),)
TWO: tuple[Span, ...] = ((1.0, 1.0), (5.0, 6.0))


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
        ("3, 3, 3, 7", ONE, 6 / 7),  # precision 3/4, recall 1: 2 * (3/4) / (7/4)
        ("0,1,2,3,4,5,6,7", ONE, 2 / 5),  # precision 2/8, recall 1: 2 * (1/4) / (5/4)
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
    assert value("3.5", ((3.0, 4.0), (3.5, 6.0))) == 1.0


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
    # 3 or 3.5: precision 1, recall 1/2. "every moment" cites 0.0, 0.1, ... 199.9; of these 2.5 to 5.0
    # and 6.5 to 7.5 hit: precision (26 + 11) / 2000 = 0.0185, recall 1: 0.037 / 1.0185.
    assert earned.pop("every moment") == pytest.approx(0.037 / 1.0185)
    assert list(earned.values()) == pytest.approx([2 / 3] * len(earned))
    assert set(earned) == {
        *("right", "reversed", "all letters", "letter outside", "full-width letter", "emoji"),
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
