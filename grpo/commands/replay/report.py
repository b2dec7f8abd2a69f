"""What a replay found, as one dictionary that is written as JSON and shown as text and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grpo.commands.replay.stats import (
    correlations,
    distribution,
    histograms,
    is_flat,
    number,
    ranking,
    records,
    shares_of_step,
    where,
)
from grpo.commands.replay.table import Replayed
from grpo.run.rollout_files import read_texts
from rewards.scoring.compose import weight_at
from rewards.scoring.specs import RewardSpec

NUM_EXAMPLES = 12


def make_report(
    replayed: Replayed, specs: Mapping[str, RewardSpec], files: Mapping[int, Path], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is shown; the texts of its examples are read from the rollouts files by step."""
    completions = replayed.completions
    steps, totals = completions["step"], {"replay": completions["total"], "run": completions["run_total"]}
    return {
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
        "adds": number(completions[f"parts/{name}"].mean()),
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


def _no_signal(completions: pd.DataFrame) -> dict[str, float]:
    """Shares of groups that teach nothing, in the run and in the replay."""
    run, replay = (is_flat(completions[name], completions["group"]) for name in ("run_total", "total"))
    shares = {"run": run, "replay": replay, "lost": replay & ~run, "won": run & ~replay}
    return {name: float(groups.mean()) for name, groups in shares.items()}


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
        **{name: number(completion[name]) for name in names},
        "rewards": {name: number(value) for name, value in _named("raw/", completion).items()},
        "parts": {name: number(value) for name, value in _named("parts/", completion).items()},
    }


def _repeated(completions: pd.DataFrame) -> list[dict[str, Any]]:
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
    return records(found.loc[highest(found["share"])])


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
