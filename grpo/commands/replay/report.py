"""What a replay found, as one dictionary that is written as JSON and shown as text and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from grpo.commands.replay.stats import (
    bucket_rows,
    correlation,
    distribution,
    flat_groups,
    highest,
    histograms,
    ranking,
    shares_of_step,
)
from grpo.commands.replay.table import Replayed
from grpo.run.rollout_files import read_texts
from rewards.scoring.compose import weight_at
from rewards.scoring.specs import RewardSpec

NUM_EXAMPLES = 12

Buckets = list[tuple[str, str, np.ndarray]]


def make_report(
    replayed: Replayed, specs: Mapping[str, RewardSpec], files: Mapping[int, Path], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is shown; the texts of its examples are read from the rollouts files by step."""
    steps = replayed.steps_P
    return {
        **about,
        "steps": [int(steps.min()), int(steps.max())],
        "num_steps": len(np.unique(steps)),
        "num_groups": len(steps),
        "num_rollouts": replayed.num_rollouts,
        "rewards": [_reward(name, spec, replayed) for name, spec in specs.items()],
        "totals": _totals(replayed),
        "no_signal": _no_signal(replayed),
        "correlations": _correlations(replayed),
        "ranking": ranking(
            replayed.run_totals_PG, replayed.totals_PG, replayed.run_advantages_PG, replayed.advantages_PG
        ),
        "where": bucket_rows(list(_buckets(replayed)), replayed.run_advantages_PG, replayed.advantages_PG),
        "failures": {name: asdict(failures) for name, failures in replayed.failures.items()},
        **_examples(replayed, files),
    }


def _reward(name: str, spec: RewardSpec, replayed: Replayed) -> dict[str, Any]:
    """One reward: its values, what it adds, and how often it tells a group's completions apart."""
    values_PG, run_PG = replayed.rewards[name], replayed.run_rewards.get(name)
    steps = replayed.steps_P
    failures = replayed.failures.get(name)
    failed = failures.count if failures else 0
    num_missing = replayed.num_rollouts - int((~np.isnan(values_PG)).sum())
    return {
        "name": name,
        "weight": turns([weight_at(spec, int(step)) for step in np.unique(steps)]),
        "values": distribution(values_PG),
        "run_values": None if run_PG is None else distribution(run_PG),
        "adds": distribution(replayed.parts[name])["mean"],
        "abstained_frac": (num_missing - failed) / replayed.num_rollouts,
        "failed_frac": failed / replayed.num_rollouts,
        "flat_frac": float(flat_groups(values_PG).mean()),
        "histogram": histograms({"replay": values_PG} | ({} if run_PG is None else {"run": run_PG})),
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


def _totals(replayed: Replayed) -> dict[str, Any]:
    both = {"replay": replayed.totals_PG, "run": replayed.run_totals_PG}
    return {name: distribution(totals_PG) for name, totals_PG in both.items()} | {
        "histogram": histograms(both)
    }


def _no_signal(replayed: Replayed) -> dict[str, float]:
    """Shares of groups that teach nothing, in the run and in the replay."""
    run_P, replay_P = flat_groups(replayed.run_totals_PG), flat_groups(replayed.totals_PG)
    return {
        "run": float(run_P.mean()),
        "replay": float(replay_P.mean()),
        "lost": float((replay_P & ~run_P).mean()),
        "won": float((run_P & ~replay_P).mean()),
    }


def _correlations(replayed: Replayed) -> dict[str, Any]:
    named = {
        **replayed.rewards,
        "(total)": replayed.totals_PG,
        "(run's total)": replayed.run_totals_PG,
        "(tokens)": replayed.tokens_PG,
        "(moments)": replayed.moments_PG,
    }
    tables = {
        kind: [[correlation(a_PG, b_PG, within=within) for b_PG in named.values()] for a_PG in named.values()]
        for kind, within in (("within", True), ("overall", False))
    }
    return {"names": list(named), **tables}


def _buckets(replayed: Replayed) -> Iterable[tuple[str, str, np.ndarray]]:
    """Kinds of completions that a policy could turn to: what it is paid for shows in what these gain."""
    right_PG, moments_PG, tokens_PG = replayed.right_PG, replayed.moments_PG, replayed.tokens_PG
    if right_PG is not None:
        yield "answer", "right", right_PG == 1
        yield "answer", "wrong", right_PG == 0
    yield "end", "by itself", replayed.stopped_PG == 1
    yield "end", "cut at the limit", replayed.stopped_PG == 0
    yield "moments", "none", moments_PG == 0
    yield "moments", "1", moments_PG == 1
    yield "moments", "2 or 3", (moments_PG == 2) | (moments_PG == 3)
    yield "moments", "4 or more", moments_PG >= 4
    quarters = np.nanquantile(tokens_PG, (0.25, 0.5, 0.75), method="lower").astype(int).tolist()
    edges = [0, *sorted(set(quarters)), int(np.nanmax(tokens_PG))]
    for low, high in pairwise(edges):
        if low < high:
            yield (
                "tokens",
                f"{low + 1 if low else 0} to {high}",
                (tokens_PG > low - (not low)) & (tokens_PG <= high),
            )


def _examples(replayed: Replayed, files: Mapping[int, Path]) -> dict[str, Any]:
    """Completions to look at, and why."""
    shares_PG = shares_of_step(replayed.advantages_PG, replayed.steps_P)
    risen_PG = replayed.advantages_PG - replayed.run_advantages_PG
    raised_PG = np.maximum(replayed.advantages_PG, 0.0)
    lists = {
        # Not by the share of their step: in one that is nearly solved the last group left has all of it.
        "gain_most": highest(raised_PG, NUM_EXAMPLES),
        "risen_most": highest(risen_PG, NUM_EXAMPLES, above=1e-9),
    }
    if (right_PG := replayed.right_PG) is not None:
        lists["wrong_but_raised"] = highest(np.where(right_PG == 0, raised_PG, np.nan), NUM_EXAMPLES)
    described = {
        name: [_example(replayed, shares_PG, place) for place in places] for name, places in lists.items()
    }
    described["repeated"] = _repeated(replayed)
    _add_texts([example for examples in described.values() for example in examples], files)
    return {"examples": described}


def _example(replayed: Replayed, shares_PG: np.ndarray, place: tuple[int, int]) -> dict[str, Any]:
    """A completion's figures; its text is added later."""
    group, index = place
    right_PG = replayed.right_PG
    return {
        "step": int(replayed.steps_P[group]),
        "row": int(replayed.first_rows_P[group]) + index,
        "share_of_step": _number(shares_PG[place]),
        "total": _number(replayed.totals_PG[place]),
        "run_total": _number(replayed.run_totals_PG[place]),
        "advantage": _number(replayed.advantages_PG[place]),
        "run_advantage": _number(replayed.run_advantages_PG[place]),
        "rewards": {name: _number(values_PG[place]) for name, values_PG in replayed.rewards.items()},
        "parts": {name: _number(values_PG[place]) for name, values_PG in replayed.parts.items()},
        "tokens": _number(replayed.tokens_PG[place]),
        "moments": _number(replayed.moments_PG[place]),
        "right": None if right_PG is None else _number(right_PG[place]),
    }


def _repeated(replayed: Replayed) -> list[dict[str, Any]]:
    """Texts that came more than once, by their share of all that is raised: what a policy can learn by heart."""
    present_PG = ~np.isnan(replayed.texts_PG)
    raised_N = np.nan_to_num(np.maximum(replayed.advantages_PG, 0.0))[present_PG]
    groups_N = np.nonzero(present_PG)[0]
    texts, first_N, inverse_N, counts = np.unique(
        replayed.texts_PG[present_PG], return_index=True, return_inverse=True, return_counts=True
    )
    raised = np.bincount(inverse_N, weights=raised_N)
    right_PG = replayed.right_PG
    rows = []
    for text in np.argsort(-raised, kind="stable"):
        if len(rows) == NUM_EXAMPLES or raised[text] <= 0:
            break
        if counts[text] < 2:
            continue
        same_N = inverse_N == text
        group = groups_N[first_N[text]]
        index = int(np.argmax(replayed.texts_PG[group] == texts[text]))
        rows.append(
            {
                "step": int(replayed.steps_P[group]),
                "row": int(replayed.first_rows_P[group]) + index,
                "times": int(counts[text]),
                "groups": len(np.unique(groups_N[same_N])),
                "share_of_completions": float(counts[text] / len(inverse_N)),
                "share": float(raised[text] / raised.sum()),
                "right_frac": None if right_PG is None else _mean_of(right_PG[present_PG][same_N]),
            }
        )
    return rows


def _add_texts(examples: Sequence[dict[str, Any]], files: Mapping[int, Path]) -> None:
    """Question, answer and completion of each example, from its step's file."""
    for step in {example["step"] for example in examples}:
        own = [example for example in examples if example["step"] == step]
        for example, texts in zip(own, read_texts(files[step], [each["row"] for each in own]), strict=True):
            example.update(texts)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean_of(values_N: np.ndarray) -> float | None:
    known_N = values_N[~np.isnan(values_N)]
    return float(known_N.mean()) if len(known_N) else None
