"""What scores of completions say about a reward set, as numbers. Pure functions of matrices.

Axes: P groups, G completions of a group. NaN is no value: a reward abstained or failed, or the group is smaller
than the largest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.learner import advantages

NUM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """How a run turns totals into advantages."""

    scale: advantages.Scale
    baseline: advantages.Baseline = "mean"
    normalised: bool = False
    """The totals are sums of normalised rewards, so that only the batch's mean and std are left to take."""
    kl_in_reward: bool = False
    """The totals hold the stored part `kl`: it depends on policy and reference alone, not on the rewards."""
    mask_truncated: bool = False
    """A completion that was cut at the token limit has no advantage, but counts in its group's."""


def advantages_of(
    totals_PG: np.ndarray, steps_P: np.ndarray, stopped_PG: np.ndarray, learning: Learning
) -> np.ndarray:
    """What training makes of each step's totals. stopped_PG: 0 where a completion was cut at the token limit."""
    found_PG = advantages.advantages_of(
        advantages.as_totals(totals_PG),
        stopped_PG != 0,
        batch=_moments(totals_PG, steps_P),
        scale=learning.scale,
        baseline=learning.baseline,
        normalised=learning.normalised,
        mask_truncated=learning.mask_truncated,
    )
    return found_PG.filled(np.nan)


def flat_groups(values_PG: np.ndarray) -> np.ndarray:
    """Which groups teach nothing, (P,): all their values are equal, or they have none."""
    highest_P = np.where(np.isnan(values_PG), -np.inf, values_PG).max(axis=1)
    lowest_P = np.where(np.isnan(values_PG), np.inf, values_PG).min(axis=1)
    return highest_P <= lowest_P


def correlation(a_PG: np.ndarray, b_PG: np.ndarray, *, within: bool = False) -> float | None:
    """Pearson's, over the completions that have both values; None where one of them never varies.

    within: of the distances from the group's mean, so that what merely differs between questions doesn't count.
    """
    both_PG = ~(np.isnan(a_PG) | np.isnan(b_PG))
    if not both_PG.any():
        return None
    a_N, b_N = (_distances(values_PG, both_PG, within=within) for values_PG in (a_PG, b_PG))
    spread = float(np.sqrt((a_N**2).sum() * (b_N**2).sum()))
    return float((a_N * b_N).sum()) / spread if spread > 1e-12 * len(a_N) else None


def kendall_taus(a_PG: np.ndarray, b_PG: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each group's two rankings, (P,): 1 the same order, -1 the reverse; NaN where one is flat.

    Of all pairs of completions, (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b).
    """
    starts = range(0, len(a_PG), 512)  # all groups at once would need P * G * G numbers
    parts = [_kendall_taus(a_PG[start : start + 512], b_PG[start : start + 512]) for start in starts]
    return np.concatenate([np.zeros(0), *parts])


def best_changed(a_PG: np.ndarray, b_PG: np.ndarray) -> np.ndarray:
    """Whether none of a group's best completions by `a` is among its best by `b`, (P,)."""
    both_PG = ~(np.isnan(a_PG) | np.isnan(b_PG))
    best = []
    for values_PG in (a_PG, b_PG):
        known_PG = np.where(both_PG, values_PG, -np.inf)
        best.append(both_PG & (known_PG == known_PG.max(axis=1, keepdims=True)))
    return ~(best[0] & best[1]).any(axis=1)


def ranking(
    run_totals_PG: np.ndarray,
    totals_PG: np.ndarray,
    run_advantages_PG: np.ndarray,
    advantages_PG: np.ndarray,
) -> dict[str, Any]:
    """How the order inside groups, and so what is learned, would have differed from the run's."""
    both_PG = ~(np.isnan(run_advantages_PG) | np.isnan(advantages_PG))
    before_N, after_N = run_advantages_PG[both_PG], advantages_PG[both_PG]
    rank_P = ~(flat_groups(run_totals_PG) | flat_groups(totals_PG))
    taus_P = kendall_taus(run_totals_PG[rank_P], totals_PG[rank_P])
    changed_P = best_changed(run_totals_PG[rank_P], totals_PG[rank_P])
    return {
        "groups_compared": int(rank_P.sum()),
        "kendall_tau": _mean(taus_P[~np.isnan(taus_P)]),
        "best_changed_frac": _mean(changed_P),
        "advantage_correlation": correlation(run_advantages_PG, advantages_PG),
        "mean_abs_change": _mean(np.abs(after_N - before_N)),
        "sign_changed_frac": _mean(np.sign(after_N) != np.sign(before_N)),
        "turned_up_frac": _mean((after_N > 0) & (before_N <= 0)),
        "turned_down_frac": _mean((after_N < 0) & (before_N >= 0)),
    }


def distribution(values_PG: np.ndarray) -> dict[str, Any]:
    """Mean, spread and quantiles of the values that are there; None for each where there is none."""
    values_N = values_PG[~np.isnan(values_PG)]
    if not len(values_N):
        return {"num": 0} | dict.fromkeys(("mean", "std", "min", "p10", "median", "p90", "max"))
    quantiles = np.quantile(values_N, (0.0, 0.1, 0.5, 0.9, 1.0)).tolist()
    return {
        "num": len(values_N),
        "mean": float(values_N.mean()),
        "std": float(values_N.std()),
        **dict(zip(("min", "p10", "median", "p90", "max"), quantiles, strict=True)),
    }


def histograms(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shares of completions in bins that all the named matrices have in common."""
    present = {name: values_PG[~np.isnan(values_PG)] for name, values_PG in named.items()}
    everything_N = np.concatenate([*present.values()])
    low, high = (float(everything_N.min()), float(everything_N.max())) if len(everything_N) else (0.0, 0.0)
    shares = {
        name: (np.bincount(_bins(values_N, low, high), minlength=NUM_BINS) / max(len(values_N), 1)).tolist()
        for name, values_N in present.items()
    }
    return {"low": low, "high": high, "shares": shares}


def shares_of_step(advantages_PG: np.ndarray, steps_P: np.ndarray) -> np.ndarray:
    """Each completion's share of its step's positive advantage, by which the update raises completions.

    0 for those that are not raised; NaN stays NaN. The shares of a step add up to 1.
    """
    raised_PG = np.maximum(advantages_PG, 0.0)
    _, step_of_P = np.unique(steps_P, return_inverse=True)
    of_step = np.bincount(step_of_P, weights=np.nansum(raised_PG, axis=1))
    return raised_PG / np.where(of_step > 0, of_step, 1.0)[step_of_P][:, None]


def bucket_rows(
    buckets: Sequence[tuple[str, str, np.ndarray]],
    run_advantages_PG: np.ndarray,
    advantages_PG: np.ndarray,
) -> list[dict[str, Any]]:
    """Where the advantage goes: for each kind of completion, its share of all completions and of what is raised.

    buckets: feature, name of the bucket, and which completions are in it.
    """
    present_PG = ~np.isnan(advantages_PG)
    raised = {"run": np.fmax(run_advantages_PG, 0.0), "replay": np.fmax(advantages_PG, 0.0)}
    rows = []
    for feature, bucket, inside_PG in buckets:
        chosen_PG = inside_PG & present_PG
        if not chosen_PG.any():
            continue
        rows.append(
            {
                "feature": feature,
                "bucket": bucket,
                "num": int(chosen_PG.sum()),
                "share_of_completions": _ratio(chosen_PG.sum(), present_PG.sum()),
                "run_share": _ratio(np.nansum(raised["run"][inside_PG]), np.nansum(raised["run"])),
                "replay_share": _ratio(raised["replay"][chosen_PG].sum(), raised["replay"][present_PG].sum()),
                "mean_advantage": _mean(advantages_PG[chosen_PG]),
            }
        )
    return rows


def highest(values_PG: np.ndarray, num: int, *, above: float = 0.0) -> list[tuple[int, int]]:
    """Places (group, completion) of the highest values, from the highest down, earlier ones first among equals."""
    flat_N = np.where(np.isnan(values_PG), -np.inf, values_PG).ravel()
    order = np.argsort(-flat_N, kind="stable")[:num]
    return [divmod(int(place), values_PG.shape[1]) for place in order if flat_N[place] > above]


def _kendall_taus(a_PG: np.ndarray, b_PG: np.ndarray) -> np.ndarray:
    both_PG = ~(np.isnan(a_PG) | np.isnan(b_PG))
    pairs_PGG = both_PG[:, :, None] & both_PG[:, None, :]
    a_PGG, b_PGG = (
        np.sign(filled_PG[:, :, None] - filled_PG[:, None, :]) * pairs_PGG
        for filled_PG in (np.where(both_PG, values_PG, 0.0) for values_PG in (a_PG, b_PG))
    )
    untied_P = np.sqrt((a_PGG**2).sum(axis=(1, 2)) * (b_PGG**2).sum(axis=(1, 2)))
    agreement_P = (a_PGG * b_PGG).sum(axis=(1, 2))
    return np.divide(agreement_P, untied_P, out=np.full(len(a_PG), np.nan), where=untied_P > 0)


def _distances(values_PG: np.ndarray, both_PG: np.ndarray, *, within: bool) -> np.ndarray:
    """Distances from the mean, of all values or of the group's, over the chosen places (N)."""
    if not within:
        return values_PG[both_PG] - values_PG[both_PG].mean()
    count_P1 = both_PG.sum(axis=1, keepdims=True).clip(min=1)
    means_P1 = np.where(both_PG, values_PG, 0.0).sum(axis=1, keepdims=True) / count_P1
    return (values_PG - means_P1)[both_PG]


def _moments(values_PG: np.ndarray, batches_P: np.ndarray) -> advantages.Moments:
    """Mean and (population) std of each group's batch, over the values that are there; two of (P, 1)."""
    _, batch_of_P = np.unique(batches_P, return_inverse=True)

    def batch_means_P1(of_PG: np.ndarray) -> np.ndarray:
        sums = np.bincount(batch_of_P, weights=np.nansum(of_PG, axis=1))
        counts = np.bincount(batch_of_P, weights=(~np.isnan(of_PG)).sum(axis=1))
        return (sums / counts.clip(min=1))[batch_of_P][:, None]

    means_P1 = batch_means_P1(values_PG)
    return advantages.Moments(means_P1, np.sqrt(batch_means_P1((values_PG - means_P1) ** 2)))


def _bins(values_N: np.ndarray, low: float, high: float) -> np.ndarray:
    """The bin of each value; the middle one for all if they differ by no more than rounding."""
    half_range = high / 2 - low / 2  # halves, because the range of two large floats may be infinite
    if half_range <= 1e-9 * max(abs(low), abs(high)):
        return np.full(len(values_N), NUM_BINS // 2)
    return ((values_N / 2 - low / 2) / half_range * NUM_BINS).astype(int).clip(0, NUM_BINS - 1)


def _mean(values_N: np.ndarray) -> float | None:
    return float(values_N.mean()) if len(values_N) else None


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None
