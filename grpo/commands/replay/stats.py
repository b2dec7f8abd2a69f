"""What scores of completions say about a reward set, as numbers. Pure functions of columns with a row per completion.

NaN is no value: a reward abstained or failed. `groups` tells which group a completion is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from grpo.groups import differ

NUM_BINS = 20


def number(value: float) -> float | None:
    """A figure as JSON has it: None where there is none."""
    return None if np.isnan(value) else float(value)


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [
        {str(name): number(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in rows.to_dict("records")
    ]


def is_flat(values: pd.Series, groups: pd.Series) -> pd.Series:
    """Whether a group teaches nothing, by group: all its values are equal but for rounding, or it has none."""
    of_group = values.groupby(groups)
    return ~differ(of_group.min(), of_group.max())


def correlations(columns: pd.DataFrame, groups: pd.Series | None = None) -> list[list[float | None]]:
    """Pearson's of every two columns, over the completions that have both; None where one of them never varies.

    groups: of the distances from the group's mean, so that what merely differs between questions doesn't count.
    """
    if groups is not None:
        columns = columns - columns.groupby(groups).transform("mean")
    # Rounded, because equal values may differ from their mean by its rounding errors.
    return [[number(value) for value in row] for row in columns.round(12).corr().to_numpy()]


def kendall_taus(a: pd.Series, b: pd.Series, groups: pd.Series) -> pd.Series:
    """Kendall's tau-b of the rankings in each group: 1 the same order, -1 the reverse; NaN where one is flat.

    It is the correlation of the signs of all differences. scipy's takes seven times as long, a fifth of a replay.
    """
    taus = {}
    for group, pair in pd.DataFrame({"a": a, "b": b}).dropna().groupby(groups):
        a_GG, b_GG = (np.sign(np.subtract.outer(values_G, values_G)) for values_G in pair.to_numpy().T)
        untied = np.sqrt((a_GG**2).sum() * (b_GG**2).sum())
        taus[group] = (a_GG * b_GG).sum() / untied if untied else np.nan
    return pd.Series(taus, dtype=float)


def best_changed(a: pd.Series, b: pd.Series, groups: pd.Series) -> pd.Series:
    """Whether none of a group's best completions by `a` is among its best by `b`, by group."""
    known = pd.DataFrame({"a": a, "b": b}).dropna()
    is_best = known == known.groupby(groups).transform("max")
    stays = is_best.all(axis=1).groupby(groups).any()
    return ~stays.reindex(groups.unique(), fill_value=False)


def ranking(completions: pd.DataFrame) -> dict[str, Any]:
    """How the order inside groups, and so what is learned, would have differed from the run's."""
    groups = completions["group"]
    flat = is_flat(completions["run_total"], groups) | is_flat(completions["total"], groups)
    ranked = completions[~groups.map(flat)]
    both = ranked["run_total"], ranked["total"], ranked["group"]
    advantages = completions[["run_advantage", "advantage"]].dropna()
    before, after = advantages["run_advantage"], advantages["advantage"]
    return {
        "groups_compared": int((~flat).sum()),
        "kendall_tau": number(kendall_taus(*both).mean()),
        "best_changed_frac": number(best_changed(*both).mean()),
        "advantage_correlation": correlations(advantages)[0][1],
        "mean_abs_change": number((after - before).abs().mean()),
        "sign_changed_frac": number((np.sign(after) != np.sign(before)).mean()),
        "turned_up_frac": number(((after > 0) & (before <= 0)).mean()),
        "turned_down_frac": number(((after < 0) & (before >= 0)).mean()),
    }


def distribution(values: pd.Series) -> dict[str, Any]:
    """Mean, spread and quantiles of the values that are there; None for each where there is none."""
    quantiles = values.quantile([0.0, 0.1, 0.5, 0.9, 1.0])
    named = dict(zip(("min", "p10", "median", "p90", "max"), quantiles, strict=True))
    figures = {"mean": values.mean(), "std": values.std(ddof=0), **named}
    return {"num": int(values.count())} | {name: number(figure) for name, figure in figures.items()}


def histograms(named: Mapping[str, pd.Series]) -> dict[str, Any]:
    """Shares of completions in bins that all the named columns have in common."""
    values = pd.concat([*named.values()])
    low, high = (number(edge) or 0.0 for edge in (values.min(), values.max()))
    shares = {}
    for name, column in named.items():
        counts = np.bincount(_bins(column.dropna(), low, high), minlength=NUM_BINS)
        shares[name] = (counts / max(column.count(), 1)).tolist()
    return {"low": low, "high": high, "shares": shares}


def shares_of_step(advantages: pd.Series, steps: pd.Series) -> pd.Series:
    """Each completion's share of its step's positive advantage, by which the update raises completions.

    0 for those that are not raised; NaN stays NaN. The shares of a step add up to 1.
    """
    raised = advantages.clip(lower=0.0)
    return raised / raised.groupby(steps).transform("sum").replace(0.0, 1.0)


def where(kinds: pd.Series, run_advantages: pd.Series, advantages: pd.Series) -> list[dict[str, Any]]:
    """Where the advantage goes: the share of each kind of completion in all completions, and in what is raised."""
    raised = {"run_share": run_advantages.clip(lower=0.0), "replay_share": advantages.clip(lower=0.0)}
    counted = pd.DataFrame({"share_of_completions": advantages.notna(), **raised})
    sums = counted.groupby(kinds, observed=True).sum()
    found = (sums / counted.sum()).assign(
        num=sums["share_of_completions"], mean_advantage=advantages.groupby(kinds, observed=True).mean()
    )
    return records(found[found["num"] > 0].rename_axis("bucket").reset_index())


def _bins(values_B: pd.Series, low: float, high: float) -> np.ndarray:
    """The bin of each value; the middle one for all if they differ by no more than rounding."""
    half_range = high / 2 - low / 2  # halves, because the range of two large floats may be infinite
    if half_range <= 1e-9 * max(abs(low), abs(high)):
        return np.full(len(values_B), NUM_BINS // 2)
    return ((values_B / 2 - low / 2) / half_range * NUM_BINS).to_numpy().astype(int).clip(0, NUM_BINS - 1)
