"""What stands beside a mean, against arithmetic by hand and textbook formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import permutation_test
from scipy.stats import t as student

from grpo.benchmarks.statistics import (
    bootstrap_interval,
    calibration_error,
    difference,
    interval_of_mean,
    pass_at_k,
    permutation_p_value,
    wilson,
)


def test_questions_about_one_video_count_as_little_as_they_say():
    # Two videos of two equal answers: four values of mean 1/2, residual sums 1 and -1.
    # se = sqrt(2 / 1 * (1 + 1)) / 4 = 1/2, and t of 1 degree is 12.7: the interval is everything.
    assert interval_of_mean([1, 1, 0, 0], ["a", "a", "b", "b"]) == (0.0, 1.0)


def test_without_repeated_videos_it_is_students_interval():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.5]
    half = student.ppf(0.975, 7) * np.std(values, ddof=1) / math.sqrt(8)
    mean = np.mean(values)
    found = interval_of_mean(values, [f"v{number}" for number in range(8)])
    assert found == pytest.approx((max(0, mean - half), min(1, mean + half)))


def test_the_clustered_interval_is_the_sandwich_of_a_regression_on_a_constant():
    rng = np.random.default_rng(0)
    clusters = [f"v{number}" for number in rng.integers(0, 12, 60)]
    values = rng.integers(0, 2, 60).astype(float)
    # By the textbook: (X'X)^-1 (sum of X_c' u_c u_c' X_c) (X'X)^-1 with X = 1, times C / (C - 1).
    residuals = values - values.mean()
    meat = sum(residuals[[name == each for name in clusters]].sum() ** 2 for each in {*clusters})
    count = len({*clusters})
    error = math.sqrt(count / (count - 1) * meat) / 60
    half = student.ppf(0.975, count - 1) * error
    assert interval_of_mean([*values], clusters) == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )


def test_equal_scores_have_an_interval_all_the_same():
    # Wilson's of 4 of 4: n / (n + z^2) = 4 / 7.8415.
    assert interval_of_mean([1.0] * 8, [*"aabbccdd"]) == pytest.approx((4 / (4 + 1.959964**2), 1.0))
    assert interval_of_mean([1.0, 0.0], ["a", "a"]) is None
    assert interval_of_mean([], []) is None
    assert wilson(0.0, 10)[0] == 0.0


def test_mcnemar_looks_at_the_questions_that_one_alone_is_right_on():
    first, second = [1.0] * 8 + [0.0] * 2, [1.0] * 2 + [0.0] * 6 + [1.0] + [0.0]
    found = difference(first, second, [f"v{number}" for number in range(10)])
    assert (found.only_first, found.only_second, found.mean) == (6, 1, pytest.approx(0.5))
    # Seven tosses of a coin, 6 to 1 or more uneven: 2 * (1 + 7) / 128.
    assert found.p_value == pytest.approx(0.125)


def test_graded_scores_have_a_difference_and_no_split_into_right_and_wrong():
    found = difference([0.9] * 10, [0.1] * 10, [f"v{number}" for number in range(10)])
    assert found.mean == pytest.approx(0.8) and found.interval == pytest.approx((0.8, 0.8))
    assert found.only_first is found.only_second is found.p_value is None


def test_graded_scores_are_compared_by_a_permutation_of_the_models_within_videos():
    # Three videos whose differences sum to .6, .5 and .3. Of the 8 ways to sign them, only all alike are 1.4 from 0.
    first, second = [0.9, 0.7, 0.5, 0.3], [0.6, 0.4, 0.0, 0.0]
    assert difference(first, second, [*"aabc"]).permutation_p_value == pytest.approx(2 / 8, abs=0.02)
    # By question there are four, all with the same sign: 2 of 16.
    assert difference(first, second, [*"abcd"]).permutation_p_value == pytest.approx(2 / 16, abs=0.02)
    # .3, .3 and -.5 are .1 from 0; with other signs they are .1, .5 or 1.1 from it.
    assert permutation_p_value(np.array([0.3, 0.3, -0.5]), [*"abc"]) == 1.0
    assert permutation_p_value(np.array([0.3, 0.2]), [*"aa"]) == permutation_p_value(np.zeros(0), []) == 1.0


def test_the_permutation_test_agrees_with_scipys_and_never_says_that_chance_is_excluded():
    values = np.random.default_rng(0).normal(0.3, 1.0, 12)
    exact = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=2**13).pvalue
    assert 0.05 < exact < 0.95
    assert permutation_p_value(values, [*"abcdefghijkl"]) == pytest.approx(exact, abs=0.02)
    assert permutation_p_value(np.ones(50), [f"v{number}" for number in range(50)]) == 1 / 10_001


def test_a_difference_to_itself_is_nothing():
    scores = [1.0, 0.0, 1.0, 0.0]
    found = difference(scores, scores, [*"abcd"])
    assert (found.mean, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_bootstrap_draws_videos_and_repeats():
    values = np.array([1.0] * 10 + [0.0] * 10)
    by_video = bootstrap_interval(values, ["a"] * 10 + ["b"] * 10)
    assert by_video == (0.0, 1.0)  # a quarter of the draws are one video twice
    by_question = bootstrap_interval(values, [f"v{number}" for number in range(20)])
    assert by_question == bootstrap_interval(values, [f"v{number}" for number in range(20)])
    # The standard error of a share of 20 is 0.112.
    assert by_question == pytest.approx((0.28, 0.72), abs=0.03)
    assert bootstrap_interval(values[:2], ["a", "a"]) is None


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer():
    # Two right of four: of the 6 pairs, 1 holds none.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert (pass_at_k(4, 0, 4), pass_at_k(4, 1, 4), pass_at_k(4, 3, 1)) == (0.0, 1.0, 0.75)


def test_calibration_is_the_mean_gap_of_confidence_and_accuracy():
    # Two at 1.0 of which one is right: a gap of 1/2; two at 0.5, one right: none. The mean over four is 1/4.
    assert calibration_error([1.0, 1.0, 0.5, 0.5], [1.0, 0.0, 1.0, 0.0]) == pytest.approx(0.25)
