"""What a replay found, as one dictionary that is written as JSON and shown as text and as a page.

Its figures are pure functions of columns with a row per completion, in which NaN is no value: a reward abstained or
failed. `groups` tells which group a completion is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grpo.commands.replay.table import Replayed
from grpo.groups import differ
from grpo.run.rollout_files import read_texts
from rewards.scoring.compose import weight_at
from rewards.scoring.specs import RewardSpec

NUM_EXAMPLES = 12
NUM_BINS = 20


def make_report(
    replayed: Replayed, specs: Mapping[str, RewardSpec], files: Mapping[int, Path], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is shown; the texts of its examples are read from the rollouts files by step."""
    completions = replayed.completions
    steps, totals = completions["step"], {"replay": completions["total"], "run": completions["run_total"]}
    found = {
        **about,
        "steps": [int(steps.min()), int(steps.max())],
        "num_steps": steps.nunique(),
        "num_groups": completions["group"].nunique(),
        "num_rollouts": len(completions),
        "rewards": [_reward(name, spec, replayed) for name, spec in specs.items()],
        "totals": {name: distribution(values) for name, values in totals.items()}
        | {"histogram": histograms(totals)},
        "no_signal": _no_signal(completions),
        "correlations": _correlations(completions),
        "ranking": ranking(completions),
        "where": [
            {"feature": feature, **row}
            for feature, kinds in _kinds(completions).items()
            for row in where(kinds, completions["run_advantage"], completions["advantage"])
        ],
        "failures": replayed.failures,
        "examples": _examples(completions, files),
    }
    return plain(found)


def plain(value: Any) -> Any:
    """A value as JSON has it: None for a figure that there is none of."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _reward(name: str, spec: RewardSpec, replayed: Replayed) -> dict[str, Any]:
    """One reward: its values, what it adds, and how often it tells a group's completions apart."""
    completions = replayed.completions
    values, run_values = completions[f"raw/{name}"], completions.get(f"run/{name}")
    failed = replayed.failures.get(name, {"count": 0})["count"]
    named = {"replay": values} | ({} if run_values is None else {"run": run_values})
    return {
        "name": name,
        "weight": turns([weight_at(spec, int(step)) for step in np.unique(completions["step"])]),
        "values": distribution(values),
        "run_values": None if run_values is None else distribution(run_values),
        "adds": completions[f"parts/{name}"].mean(),
        "abstained_frac": (int(values.isna().sum()) - failed) / len(completions),
        "failed_frac": failed / len(completions),
        "flat_frac": float(is_flat(values, completions["group"]).mean()),
        "histogram": histograms(named),
    }


def turns(weights: Sequence[float]) -> list[float]:
    """The first weight, those at which it turns around, and the last one."""
    changing = [weight for weight, after in pairwise(weights) if weight != after] + [weights[-1]]
    between = [
        here
        for before, here, after in zip(changing, changing[1:], changing[2:], strict=False)
        if (here > before) == (here > after)
    ]
    return [weights[0], *between, weights[-1]]


def distribution(values: pd.Series) -> dict[str, Any]:
    """Mean, spread and quantiles of the values that are there."""
    quantiles = values.quantile([0.0, 0.1, 0.5, 0.9, 1.0])
    named = dict(zip(("min", "p10", "median", "p90", "max"), quantiles, strict=True))
    return {"num": int(values.count()), "mean": values.mean(), "std": values.std(ddof=0), **named}


def histograms(named: Mapping[str, pd.Series]) -> dict[str, Any]:
    """Shares of completions in bins that all the named columns have in common."""
    values = pd.concat([*named.values()])
    low, high = np.nan_to_num([values.min(), values.max()]).tolist()
    shares = {}
    for name, column in named.items():
        counts = np.bincount(_bins(column.dropna(), low, high), minlength=NUM_BINS)
        shares[name] = (counts / max(column.count(), 1)).tolist()
    return {"low": low, "high": high, "shares": shares}


def _bins(values_B: pd.Series, low: float, high: float) -> np.ndarray:
    """The bin of each value; the middle one for all if they differ by no more than rounding."""
    # Halves, because the range of two large floats may be infinite.
    half_range = high / 2 - low / 2
    if half_range <= 1e-9 * max(abs(low), abs(high)):
        return np.full(len(values_B), NUM_BINS // 2)
    return ((values_B / 2 - low / 2) / half_range * NUM_BINS).to_numpy().astype(int).clip(0, NUM_BINS - 1)


def _no_signal(completions: pd.DataFrame) -> dict[str, float]:
    """Shares of groups that teach nothing, in the run and in the replay."""
    run, replay = (is_flat(completions[name], completions["group"]) for name in ("run_total", "total"))
    shares = {"run": run, "replay": replay, "lost": replay & ~run, "won": run & ~replay}
    return {name: float(groups.mean()) for name, groups in shares.items()}


def is_flat(values: pd.Series, groups: pd.Series) -> pd.Series:
    """Whether a group teaches nothing, by group: all its values are equal but for rounding, or it has none."""
    of_group = values.groupby(groups)
    return ~differ(of_group.min(), of_group.max())


def _correlations(completions: pd.DataFrame) -> dict[str, Any]:
    shown = {f"raw/{name}": name for name in _named("raw/", completions)} | {
        "total": "(total)",
        "run_total": "(run's total)",
        "tokens": "(tokens)",
        "moments": "(moments)",
    }
    columns = completions[[*shown]]
    within = correlations(columns, completions["group"])
    return {"names": [*shown.values()], "within": within, "overall": correlations(columns)}


def correlations(columns: pd.DataFrame, groups: pd.Series | None = None) -> list[list[float]]:
    """Pearson's of every two columns, over the completions that have both; NaN where one of them never varies.

    groups: of the distances from the group's mean, so that what merely differs between questions doesn't count.
    """
    if groups is not None:
        columns = columns - columns.groupby(groups).transform("mean")
    # Rounded, because equal values may differ from their mean by its rounding errors.
    return columns.round(12).corr().to_numpy().tolist()


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
        "kendall_tau": kendall_taus(*both).mean(),
        "best_changed_frac": best_changed(*both).mean(),
        "advantage_correlation": correlations(advantages)[0][1],
        "mean_abs_change": (after - before).abs().mean(),
        "sign_changed_frac": (np.sign(after) != np.sign(before)).mean(),
        "turned_up_frac": ((after > 0) & (before <= 0)).mean(),
        "turned_down_frac": ((after < 0) & (before >= 0)).mean(),
    }


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


def _kinds(completions: pd.DataFrame) -> dict[str, pd.Series]:
    """Kinds of completions that a policy could turn to: what it is paid for shows in what these gain."""
    tokens = completions["tokens"]
    edges = [-1, *sorted({*tokens.quantile([0.25, 0.5, 0.75, 1.0], interpolation="lower").astype(int)})]
    names = [f"{low + 1} to {high}" for low, high in pairwise(edges)]
    return {
        "answer": completions["right"].map({1.0: "right", 0.0: "wrong"}),
        "end": completions["stopped"].map({1.0: "by itself", 0.0: "cut at the limit"}),
        "moments": pd.cut(
            completions["moments"], [-1, 0, 1, 3, np.inf], labels=["none", "1", "2 or 3", "4 or more"]
        ),
        "tokens": pd.cut(tokens, edges, labels=names),
    }


def where(kinds: pd.Series, run_advantages: pd.Series, advantages: pd.Series) -> list[dict[Any, Any]]:
    """Where the advantage goes: the share of each kind of completion in all completions, and in what is raised."""
    raised = {"run_share": run_advantages.clip(lower=0.0), "replay_share": advantages.clip(lower=0.0)}
    counted = pd.DataFrame({"share_of_completions": advantages.notna(), **raised})
    sums = counted.groupby(kinds, observed=True).sum()
    found = (sums / counted.sum()).assign(
        num=sums["share_of_completions"], mean_advantage=advantages.groupby(kinds, observed=True).mean()
    )
    return found[found["num"] > 0].rename_axis("bucket").reset_index().to_dict("records")


def _examples(completions: pd.DataFrame, files: Mapping[int, Path]) -> dict[str, list[dict[str, Any]]]:
    """Completions to look at, by the reason for it."""
    completions = completions.assign(
        raised=completions["advantage"].clip(lower=0.0),
        share_of_step=shares_of_step(completions["advantage"], completions["step"]),
    )
    risen = completions["advantage"] - completions["run_advantage"]
    values = {
        # Not by the share of their step: in one that is nearly solved the last group left has all of it.
        "gain_most": completions["raised"],
        "risen_most": risen[risen > 1e-9],
        "wrong_but_raised": completions["raised"][completions["right"] == 0],
    }
    examples = {
        kind: [_example(completions.loc[index]) for index in highest(column)]
        for kind, column in values.items()
    } | {"repeated": _repeated(completions)}
    _add_texts([example for several in examples.values() for example in several], files)
    return examples


def shares_of_step(advantages: pd.Series, steps: pd.Series) -> pd.Series:
    """Each completion's share of its step's positive advantage, by which the update raises completions.

    0 for those that are not raised; NaN stays NaN. The shares of a step add up to 1.
    """
    raised = advantages.clip(lower=0.0)
    return raised / raised.groupby(steps).transform("sum").replace(0.0, 1.0)


def highest(values: pd.Series) -> list[Any]:
    """Where the highest values are, from the highest down, of those above 0; earlier ones first among equals."""
    return [*values[values > 0].nlargest(NUM_EXAMPLES).index]


def _example(completion: pd.Series) -> dict[str, Any]:
    """A completion's figures; its text is added later."""
    names = (
        "share_of_step", "total", "run_total", "advantage", "run_advantage", "tokens", "moments", "right"
    )  # fmt: skip
    return {
        "step": int(completion["step"]),
        "row": int(completion["row"]),
        **{name: completion[name] for name in names},
        "rewards": _named("raw/", completion),
        "parts": _named("parts/", completion),
    }


def _repeated(completions: pd.DataFrame) -> list[dict[Any, Any]]:
    """Texts that came more than once, by their share of all that is raised: what a policy can learn by heart."""
    texts = completions.astype({"step": int, "row": int}).groupby("text", sort=False)
    found = texts.agg(
        step=("step", "first"),
        row=("row", "first"),
        times=("text", "size"),
        groups=("group", "nunique"),
        share=("raised", "sum"),
        right_frac=("right", "mean"),
    )
    found = found.assign(
        share=found["share"] / completions["raised"].sum(),
        share_of_completions=found["times"] / len(completions),
    )
    found = found[found["times"] > 1]
    return found.loc[highest(found["share"])].to_dict("records")


def _add_texts(examples: Sequence[dict[str, Any]], files: Mapping[int, Path]) -> None:
    """Question, answer and completion of each example, from its step's file."""
    for step in {example["step"] for example in examples}:
        own = [example for example in examples if example["step"] == step]
        for example, texts in zip(own, read_texts(files[step], [each["row"] for each in own]), strict=True):
            example.update(texts)


def _named(prefix: str, columns: pd.DataFrame | pd.Series) -> dict[str, Any]:
    """Columns, or a completion's values, of one kind, by what follows the prefix."""
    return {
        str(name).removeprefix(prefix): each for name, each in columns.items() if str(name).startswith(prefix)
    }
