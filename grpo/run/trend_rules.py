"""What the rows of a whole run say of training that goes wrong, in words; what a single step says is in
`warning_rules.py`.

Every rule is a function of the rows and the rewards' weights that returns a warning or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from grpo.run.warning_rules import warnings_of

Rows = Sequence[Mapping[str, Any]]
Weights = Mapping[str, float]

RECENT = 10
"""The last steps that speak of how a run is now."""
MOST_FRAC = 0.8
"""The share from which on something is the case nearly always."""
FALL = 0.05
"""The fall of a held-out accuracy that is more than chance makes of a few hundred questions."""
GROWTH = 1.3
"""The factor by which completions have grown when it counts."""
ONSET_FRAC = 0.2
"""The share of a rise that is done when it has begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A warning about a run in one sentence, and where to look."""

    name: str
    text: str
    reward: str | None = None
    """The reward that it is about."""
    from_step: int | None = None
    """The step from which on it is so."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def trends_of(rows: Rows, weights: Weights) -> list[Trend]:
    """Return the warnings that hold for a run. weights: of its rewards."""
    return [found for rule in RULES if (found := rule(rows, weights)) is not None]


def warnings_of_run(rows: Rows, weights: Weights, group_size: int) -> list[Trend]:
    """Return the warnings about a run as a whole, then those about its latest step. group_size: of its rollouts."""
    latest = warnings_of(rows[-1], group_size) if rows else {}
    return trends_of(rows, weights) + [Trend(name=name, text=text) for name, text in latest.items()]


def flat_groups(rows: Rows, _: Weights) -> Trend | None:
    """Return a warning if hardly any group has a signal."""
    share = _recent(rows, "groups/no_signal")
    if share is None or share < MOST_FRAC:
        return None
    text = f"{share:.0%} of the groups of the last steps are flat: the rewards can't tell their completions apart"
    return Trend(name="flat groups", text=text)


def cut_completions(rows: Rows, _: Weights) -> Trend | None:
    """Return a warning if nearly all completions end at the token limit."""
    stopped = _recent(rows, "completion/stopped")
    if stopped is None or stopped > 1 - MOST_FRAC:
        return None
    text = f"{1 - stopped:.0%} of the completions of the last steps are cut at rollout.max_new_tokens"
    return Trend(name="cut completions", text=text)


def equal_rewards(rows: Rows, weights: Weights) -> Trend | None:
    """Return a warning if two rewards have had the same mean in every step, and that mean has moved."""
    series = {name: [value for _, value in _series(rows, _mean_of(name))] for name in weights}
    for one, other in combinations(series, 2):
        if len({*series[one]}) > 2 and series[one] == series[other]:
            text = (
                f"the rewards {one} and {other} are the same number in every step: one of them tells nothing"
            )
            return Trend(name="equal rewards", text=text, reward=other)
    return None


def turns_from_accuracy(rows: Rows, weights: Weights) -> Trend | None:
    """Return a warning if held-out accuracy has fallen from its best while the total has not: a reward is paid without
    being earned. The one whose part has risen most since then is named.
    """
    for key in sorted({key for row in rows for key in row if _is_held_out_accuracy(key)}):
        scores = _series(rows, key)
        best_step, best = max(scores, key=lambda pair: pair[1])
        last = scores[-1][1]
        before, after = (_around(rows, "reward/mean", step) for step in (best_step, scores[-1][0]))
        if best - last < FALL or before is None or after is None or after < before:
            continue
        text = f"{key} has fallen from {best:.2g} at step {best_step} to {last:.2g}, and the total has not"
        rises = {
            name: weight * rise for name, weight in weights.items() if (rise := _rise(rows, name, best_step))
        }
        name = max(rises, key=lambda each: rises[each], default=None)
        if name is None or rises[name] <= 0:
            return Trend(name="accuracy falls", text=text, from_step=best_step)
        onset = _onset(_series(rows, _mean_of(name)), best_step)
        text += f": the reward {name} rises from about step {onset} on; look at the completions that it pays"
        # An onset is not known to the step: the last held-out score before it is shown too.
        shown_from = max((step for step, _ in scores if step < onset), default=onset)
        return Trend(name="accuracy falls", text=text, reward=name, from_step=shown_from)
    return None


def length_without_reward(rows: Rows, _: Weights) -> Trend | None:
    """Return a warning if completions have grown and the total has not."""
    lengths, totals = _series(rows, "completion/length"), _series(rows, "reward/mean")
    if len(lengths) < 2 * RECENT or len(totals) < 2 * RECENT:
        return None
    (short, long), (low, high) = (
        (fmean(value for _, value in each[:RECENT]), fmean(value for _, value in each[-RECENT:]))
        for each in (lengths, totals)
    )
    if long < GROWTH * short or high > low:
        return None
    text = f"completions have grown from {short:.0f} to {long:.0f} tokens, and the total has not risen"
    return Trend(name="length without reward", text=text)


RULES: tuple[Callable[[Rows, Weights], Trend | None], ...] = (
    turns_from_accuracy,
    flat_groups,
    cut_completions,
    equal_rewards,
    length_without_reward,
)


def _is_held_out_accuracy(key: str) -> bool:
    return key.startswith("eval/") and key.endswith("/accuracy") and key.count("/") == 2


def _mean_of(reward: str) -> str:
    return f"rewards/{reward}/mean"


def _series(rows: Rows, key: str) -> list[tuple[int, float]]:
    """Return the steps that have a figure, with it."""
    return [(int(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]


def _recent(rows: Rows, key: str) -> float | None:
    """Return the mean of a figure over the last steps; None if there are too few."""
    series = _series(rows, key)[-RECENT:]
    return fmean(value for _, value in series) if len(series) == RECENT else None


def _around(rows: Rows, key: str, step: int) -> float | None:
    """Return the mean of a figure over the few steps nearest to one."""
    nearest = sorted(_series(rows, key), key=lambda pair: abs(pair[0] - step))[: RECENT // 2]
    return fmean(value for _, value in nearest) if nearest else None


def _rise(rows: Rows, reward: str, since: int) -> float | None:
    """Return how much higher a reward's mean is in the last steps than around an earlier one."""
    before, now = (_around(rows, _mean_of(reward), step) for step in (since, 10**9))
    return None if before is None or now is None else now - before


def _onset(series: Sequence[tuple[int, float]], since: int) -> int:
    """Return the first step after which a figure never is as low again as at the beginning of its rise."""
    early = fmean([value for step, value in series if step <= since][-RECENT // 2 :] or [series[0][1]])
    late = fmean(value for _, value in series[-RECENT // 2 :])
    level = early + ONSET_FRAC * (late - early)
    below = [step for step, value in series if value < level and step >= since]
    return next((step for step, _ in series if step > max(below, default=since)), since)
