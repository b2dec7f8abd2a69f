"""Cited moments against scores of frames."""

from __future__ import annotations

from time import perf_counter

import pytest

from rewards.builtin.keyframe import keyframe_scores
from tests.rewards.builtin.test_keyframe import SCORES, citing


@pytest.mark.parametrize(
    ("cited", "expected"),
    [
        ("4", 1.0),
        ("4.9", 1.0),  # the nearest
        ("3.1, 4.9", 1 / 2 / (3 / 4)),  # both nearest to the same one
        ("2", 1 / 2),
        ("0", 0.0),
        ("2, 4", 1.0),  # the best two
        ("0, 4", 1 / 2 / (3 / 4)),
        ("4, 4", 1 / 2 / (3 / 4)),  # once more is worth nothing
        ("2-4", 1.0),
        ("2.5-2.8", 1 / 2),  # none inside: the one nearest to the middle
        ("4, 9", 1 / 2 / (3 / 4)),  # outside the clip
        ("9", 0.0),
        ("0-8", (1.5 / 4) / (1.5 / 3)),  # four frames against the best three
        ("x", 0.0),
    ],
)
def test_scores_are_compared_with_the_best_that_could_be_cited(cited: str, expected: float) -> None:
    scored = citing(cited, columns={"frame_scores": SCORES})
    assert keyframe_scores(scored) == pytest.approx(expected)


def test_a_smaller_limit_makes_citing_everything_worth_less() -> None:
    everything = citing("0-8", columns={"frame_scores": SCORES})
    assert keyframe_scores(everything, max_moments=1) == pytest.approx(1.5 / 4)


def test_a_moment_selects_the_best_frame_within_the_tolerance() -> None:
    scored = citing("2", columns={"frame_scores": [[0, 0], [1.8, 0.2], [2.5, 1.0], [2.6, 2.0]]})
    assert keyframe_scores(scored, tolerance_s=0.0) == pytest.approx(0.2 / 2)  # the nearest, at 1.8
    assert keyframe_scores(scored) == pytest.approx(1.0 / 2)  # 2.5 is just near enough
    assert keyframe_scores(scored, tolerance_s=0.6) == 1.0


def test_thousands_of_citations_of_thousands_of_frames_take_no_minute() -> None:
    columns = {"frame_scores": [[index / 500, index % 7] for index in range(4000)]}
    scored = citing(", ".join(["0-8"] * 20_000), columns=columns)
    start_s = perf_counter()
    # 20,000 times 4,000 frames, each worth something once: the mean over all is next to nothing.
    assert keyframe_scores(scored) == pytest.approx(0.5 / 20_000, rel=0.01)
    assert perf_counter() - start_s < 2


@pytest.mark.parametrize("scores", [None, [], [[1, 0.5]], [[1, 0.5], [2, 0.5]]])
def test_without_scores_to_choose_by_there_is_no_value(scores: object) -> None:
    assert keyframe_scores(citing("1", columns={"frame_scores": scores})) is None
    assert keyframe_scores(citing("1")) is None


@pytest.mark.parametrize(
    "scores",
    [3, "high", [1, 2], [[1, 2, 3]], [[1, "x"]], [[1, float("nan")]], [[10**400, 1]]]
    + [{"12": 0.3}, ["12", "15"], [["1", "0.5"], ["2", "0.7"]], [[1, True], [2, 0.5]], [[1, 0.5], None]],
)
def test_scores_that_are_none_name_the_sample(scores: object) -> None:
    with pytest.raises(ValueError, match=r"probe-choice \(probe:1\): frame_scores"):
        keyframe_scores(citing("1", columns={"frame_scores": scores}))
