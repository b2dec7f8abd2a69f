"""What stands beside a mean: intervals and differences. Pure functions of arrays, one value for each question.

Questions about one video are not independent, so the cluster is the video. The interval of a mean is the sandwich
estimate for clusters (Miller, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2) with Student's t of one less
than the number of videos and the factor C / (C - 1) of small samples (Cameron and Miller, "A Practitioner's Guide to
Cluster-Robust Inference", 2015). Of two models the questions are the same, so their difference is taken question by
question: an interval by the paired bootstrap over videos, a permutation test over videos, which takes graded scores
too, and McNemar's exact test of who is right alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Interval = tuple[float, float]
MAX_DRAWS, MIN_DRAWS = 10_000, 1_000
MAX_DRAWN = 20_000_000
"""The most videos that all draws have together, beyond the fewest draws: a second's work."""
DRAWS_AT_ONCE = 100
"""All draws at once would be as many numbers as there are draws and videos to each."""
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A model's score minus another's on the same questions."""

    mean: float
    interval: Interval | None
    """The paired bootstrap's, over videos; None for fewer than two of them."""
    only_first: int | None
    """The questions that the first alone is right on; None where a score is neither 0 nor 1, as of graded answers."""
    only_second: int | None
    p_value: float | None
    """McNemar's exact two-sided p: how often even odds give so uneven a split. It takes questions as independent.
    None where a score is neither 0 nor 1."""
    permutation_p_value: float
    """The two-sided p of the permutation test over videos, of graded scores too."""


def interval_of_mean(values: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """The 95 % interval of a mean whose values lie between 0 and 1; None for fewer than two clusters.

    Where all values are equal the sandwich has no width, which no sample justifies: then it is Wilson's interval
    (1927) of as many values as there are clusters.
    """
    # Late: of the extra `commands`.
    from scipy.special import stdtrit

    array, index = np.asarray(values, float), np.unique(clusters, return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        return None
    mean = float(array.mean())
    if np.ptp(array) == 0:
        return wilson(mean, count)
    sums = np.bincount(index, weights=array - mean)
    error = math.sqrt(count / (count - 1) * float(sums @ sums)) / len(array)
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return max(0.0, mean - half), min(1.0, mean + half)


def wilson(mean: float, count: int) -> Interval:
    """Wilson's 95 % interval of a share of `count` independent values."""
    z = 1.959964
    centre, half = mean + z**2 / (2 * count), z * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    # At 0 and at 1 a bound is the mean itself, but for rounding.
    return max(0.0, min(mean, (centre - half) / scale)), min(1.0, max(mean, (centre + half) / scale))


def difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], *, seed: int = 0
) -> Difference:
    """The paired difference of two models' scores on the same questions."""
    one, other = np.asarray(first, float), np.asarray(second, float)
    only_first = only_second = p_value = None
    if np.isin([one, other], (0, 1)).all():
        only_first, only_second = int(np.sum(one > other)), int(np.sum(other > one))
        p_value = mcnemar(only_first, only_second)
    return Difference(
        mean=float(np.mean(one - other)),
        interval=bootstrap_interval(one - other, clusters, seed=seed),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        permutation_p_value=permutation_p_value(one - other, clusters, seed=seed),
    )


def permutation_p_value(differences: np.ndarray, clusters: Sequence[str], *, seed: int = 0) -> float:
    """The two-sided p of a mean difference: how often it is as far from 0 if chance says, by cluster, who is who.

    Between equally good models each cluster's sum might as well have the other sign. 1 for fewer than two clusters.
    """
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=differences)
    rng, num_draws, num_far = np.random.default_rng(seed), _num_draws(len(sums)), 0
    # Sums of the same numbers in another order differ by their rounding.
    bound = abs(sums.sum()) - 1e-9
    for start in range(0, num_draws, DRAWS_AT_ONCE):
        signs = rng.choice((-1.0, 1.0), (min(DRAWS_AT_ONCE, num_draws - start), len(sums)))
        num_far += int(np.sum(np.abs(signs @ sums) >= bound))
    # The signs that were seen are one more draw, so that no p is 0.
    return (num_far + 1) / (num_draws + 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p of the questions that one alone is right on."""
    # Late: of the extra `commands`.
    from scipy.stats import binomtest

    discordant = only_first + only_second
    test: Any = binomtest(only_first, discordant) if discordant else None
    return float(test.pvalue) if test is not None else 1.0


def bootstrap_interval(values: np.ndarray, clusters: Sequence[str], *, seed: int = 0) -> Interval | None:
    """The 95 % percentile interval of a mean over clusters drawn with replacement; None for fewer than two of them."""
    index = np.unique(clusters, return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        return None
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    rng, means = np.random.default_rng(seed), []
    num_draws = _num_draws(count)
    for start in range(0, num_draws, DRAWS_AT_ONCE):
        drawn = rng.integers(0, count, (min(DRAWS_AT_ONCE, num_draws - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _num_draws(count: int) -> int:
    return min(MAX_DRAWS, max(MIN_DRAWS, MAX_DRAWN // max(1, count)))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from n of which c are (arXiv 2107.03374)."""
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def calibration_error(confidences: Sequence[float], rights: Sequence[float], *, num_bins: int = 10) -> float:
    """The expected calibration error (arXiv 1706.04599): the mean distance of confidence from accuracy, by bins."""
    confidence, right = np.asarray(confidences, float), np.asarray(rights, float)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [abs(float(np.sum(confidence[bins == each] - right[bins == each]))) for each in range(num_bins)]
    return sum(gaps) / len(right)
