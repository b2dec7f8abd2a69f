"""Rewards for the length, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from grpo.groups import Rollout
from rewards.builtin.length import brevity, cosine_length, length_window, overlong
from rewards.hostile import make_group, synthetic_samples

CHOICE = synthetic_samples({})[0]


def of_length(num_tokens: int, answer: str = "B") -> Rollout:
    rollout = make_group([f"<answer>{answer}</answer>"], CHOICE).rollouts[0]
    return replace(rollout, token_ids=tuple(range(num_tokens)))


@pytest.mark.parametrize(
    ("lengths", "answers", "knobs", "values"),
    [
        ((319, 320, 512, 513), "BBBB", {}, [0, 1, 1, 0]),
        ((400, 400, 400, 400), "BBAA", {}, [1, 1, 0, 0]),
        ((400, 400, 400, 400), "BAAA", {}, [0, 0, 0, 0]),  # one right answer is not more than one
        ((400, 10, 400, 400), "BBAA", {}, [1, 0, 0, 0]),  # the second right one counts, whatever its length
        ((400, 400, 400, 400), "BAAA", {"min_right": 1}, [1, 0, 0, 0]),
        ((4, 5, 6, 7), "BBBB", {"min_tokens": 5, "max_tokens": 6}, [0, 1, 1, 0]),
        ((400, 400, 400, 400), "BBAA", {"right_above": 1}, [0, 0, 0, 0]),  # 1 is not above 1
        (
            (400, 400, 400, 400),
            "BBAA",
            {"right_by": "format"},
            [0, 0, 0, 0],
        ),  # no think block: none is "right"
    ],
)
def test_right_answers_in_the_window_get_a_bonus_if_there_are_several(
    lengths: tuple[int, ...], answers: str, knobs: dict[str, Any], values: list[float]
) -> None:
    rollouts = [of_length(length, answer) for length, answer in zip(lengths, answers, strict=True)]
    assert length_window(rollouts, **knobs) == values


@pytest.mark.parametrize(
    ("num_tokens", "value"),
    [
        (1, 0),
        (80, 0),
        (81, -0.05),
        (90, -0.5),
        (100, -1),
        (1000, -1),
    ],  # 100 - 20 = 80; then 1/20 for each token
)
def test_overlong_falls_to_minus_one_over_the_cache(num_tokens: int, value: float) -> None:
    found = overlong(of_length(num_tokens), max_tokens=100, cache_tokens=20)
    assert found == pytest.approx(value) and str(found) != "-0.0"
    assert overlong(of_length(num_tokens), max_tokens=100) == found  # a fifth, unless it is told


@pytest.mark.parametrize(
    ("num_tokens", "answer", "value"),
    [
        (0, "B", 2.0),
        (50, "B", 1.5),  # 1 + (2 - 1) * (1 + cos(pi / 2)) / 2
        (25, "B", 1.5 + math.sqrt(0.5) / 2),  # cos(pi / 4) = sqrt(1/2)
        (0, "A", -10.0),
        (50, "A", -5.0),
        (75, "A", -5.0 * (1 - math.sqrt(0.5))),  # 0 - 10 * (1 - sqrt(1/2)) / 2
        (100, "B", -10.0),  # exceeded, right or wrong
        (500, "A", -10.0),
    ],
)
def test_the_cosine_prefers_short_right_and_long_wrong_answers(
    num_tokens: int, answer: str, value: float
) -> None:
    assert cosine_length(of_length(num_tokens, answer), max_tokens=100) == pytest.approx(value)


def test_the_curves_of_the_cosine_are_knobs() -> None:
    knobs: dict[str, Any] = {
        "right_start": 1.0,
        "right_end": 0.5,
        "wrong_start": 0.0,
        "wrong_end": 0.2,
        "exceeded": -0.5,
    }
    values = [
        cosine_length(of_length(*each), max_tokens=10, **knobs) for each in [(5, "B"), (5, "A"), (10, "B")]
    ]
    assert values == pytest.approx([0.75, 0.1, -0.5])


@pytest.mark.parametrize(("num_tokens", "value"), [(1, 1), (64, 1), (96, 0.5), (128, 0), (1000, 0)])
def test_brevity_falls_to_nothing_at_twice_the_target(num_tokens: int, value: float) -> None:
    assert brevity(of_length(num_tokens), target_tokens=64) == value


def test_where_rightness_is_not_known_the_length_is_not_judged() -> None:
    rollouts = [of_length(400), of_length(400)]
    assert length_window(rollouts, right_by="number") == [None, None]  # abstains on a choice
    assert cosine_length(rollouts[0], max_tokens=500, right_by="number") is None


def test_knobs_that_mean_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="cache_tokens=200"):
        overlong(of_length(1), max_tokens=100, cache_tokens=200)
    with pytest.raises(ValueError, match="target_tokens=0"):
        brevity(of_length(1), target_tokens=0)
    with pytest.raises(
        ValueError, match=r"right_by: no built-in reward named 'acuracy' \(did you mean 'accuracy'"
    ):
        cosine_length(of_length(1), max_tokens=9, right_by="acuracy")
    with pytest.raises(ValueError, match="right_by: length_window is no @reward function of one rollout"):
        cosine_length(of_length(1), max_tokens=9, right_by="length_window")
    with pytest.raises(ValueError, match="right_by: self_evidence looks at changed frames"):
        cosine_length(of_length(1), max_tokens=9, right_by="self_evidence")
