"""From the rewards' raw values to a rollout's total: gates, clipping, schedules, weights. Pure functions.

The total is the plain weighted sum. It is not divided by the sum of the weights: switching one reward off would
rescale the others, and an ablation would measure two things.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev
from typing import get_args

from grpo.groups import Task, differ
from rewards.scoring.loading import did_you_mean
from rewards.scoring.specs import MAX_SIZE, RewardSpec

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq,
}  # fmt: skip
_CONDITION = re.compile(
    r"\s*([^\s<>=]+)\s*(?:(>=|<=|==|>|<)\s*([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*)?", re.IGNORECASE
)
# trl's, in `normalize_then_sum`
NORMALISE_EPS = 1e-4

TASKS: tuple[str, ...] = get_args(Task)

Column = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of another reward's raw value with a number."""

    reward: str
    comparison: str
    threshold: float

    def holds(self, value: float | None) -> bool:
        """Whether a value passes; an abstention never does."""
        return value is not None and COMPARISONS[self.comparison](value, self.threshold)


def read_condition(text: str, *, key: str) -> Condition:
    """`accuracy` (above 0) or `accuracy >= 0.5`; ValueError names the key."""
    found = _CONDITION.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        threshold = float(found[3] or 0.0)
    except ValueError:
        raise ValueError(f"{key}: {text!r} is neither a reward's name nor NAME > NUMBER") from None
    if not math.isfinite(threshold):
        raise ValueError(f"{key}: in {text!r}, {found[3]} is no finite number")
    return Condition(found[1], found[2] or ">", threshold)


def conditions_of(name: str, spec: RewardSpec) -> dict[str, Condition]:
    """The gates of a reward, by the spec's field."""
    fields = {"only_if": spec.only_if, "only_unless": spec.only_unless}
    return {
        field: read_condition(text, key=f"rewards.{name}.{field}")
        for field, text in fields.items()
        if text is not None
    }


def check_specs(specs: Mapping[str, RewardSpec]) -> None:
    """Raise ValueError, naming the key, for weights, limits, schedules and gates that mean nothing."""
    for name, spec in specs.items():
        key = f"rewards.{name}"
        if not math.isfinite(spec.weight):
            raise ValueError(f"{key}.weight: {spec.weight} is no finite number")
        if abs(spec.weight) > MAX_SIZE:
            raise ValueError(f"{key}.weight: {spec.weight} is beyond {MAX_SIZE:g}")
        if spec.clip is not None and not spec.clip[0] <= spec.clip[1]:
            raise ValueError(f"{key}.clip: {list(spec.clip)} is no [lower, upper]")
        if not 0 < spec.timeout_s < math.inf:
            raise ValueError(f"{key}.timeout_s: must be above 0, not {spec.timeout_s}")
        for task in set(spec.tasks or []) - set(TASKS):
            raise ValueError(f"{key}.tasks: no task {task!r}{did_you_mean(task, TASKS)}")
        _check_schedule(spec.schedule, key=f"{key}.schedule")
        _check_gates(name, specs)


def _check_schedule(points: Sequence[Sequence[float]], *, key: str) -> None:
    if any(len(point) != 2 or not all(map(math.isfinite, point)) for point in points):
        raise ValueError(f"{key}: {points} is no list of [step, factor]")
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(f"{key}: the steps in {points} do not rise")


def _check_gates(name: str, specs: Mapping[str, RewardSpec]) -> None:
    """Raise ValueError if a gate names no reward, or if gates that start here come back."""

    def follow(current: str, path: tuple[str, ...]) -> None:
        for field, condition in conditions_of(current, specs[current]).items():
            key, gate = f"rewards.{current}.{field}", condition.reward
            if gate not in specs:
                raise ValueError(f"{key}: no reward named {gate!r}{did_you_mean(gate, specs)}")
            if gate in path:
                raise ValueError(f"{key}: goes round in a circle: {' -> '.join([*path, gate])}")
            follow(gate, (*path, gate))

    follow(name, (name,))


def names_that_count(specs: Mapping[str, RewardSpec]) -> frozenset[str]:
    """Rewards whose failure leaves no total: those with a weight, and those that gate them."""
    weighted = [name for name, spec in specs.items() if spec.weight]
    gates = [gate.reward for name in weighted for gate in conditions_of(name, specs[name]).values()]
    return frozenset([*weighted, *gates])


def weight_at(spec: RewardSpec, step: int) -> float:
    """The weight in a step: its schedule's factor, by straight lines between points, constant outside them."""
    points = spec.schedule
    if not points:
        return spec.weight
    if step <= points[0][0]:
        return spec.weight * points[0][1]
    for (start, low), (end, high) in pairwise(points):
        if step <= end:
            return spec.weight * (low + (high - low) * (step - start) / (end - start))
    return spec.weight * points[-1][1]


def parts_of(
    specs: Mapping[str, RewardSpec], columns: Mapping[str, Column], step: int, *, normalise: bool = False
) -> dict[str, tuple[float, ...]]:
    """What each reward adds to the totals of a group's rollouts; 0 where it abstained or its gates are shut.

    A gate looks at the raw value of the other reward, whatever that one's weight, clip and own gates.
    normalise: every reward becomes its distance from its group's mean over its (population) std before it is
    weighted, over the rollouts where it counts (GDPO, arXiv 2601.05242; trl's `normalize_then_sum`).
    """
    parts = {}
    for name, spec in specs.items():
        counted = [_clipped(value, spec) for value in gated(name, spec, columns)]
        if normalise:
            counted = _normalised(counted)
        weight = weight_at(spec, step)
        parts[name] = tuple(0.0 if value is None else weight * value for value in counted)
    return parts


def gated(name: str, spec: RewardSpec, columns: Mapping[str, Column]) -> list[float | None]:
    """A reward's values, None where its gates are shut."""
    opens = gates_open(name, spec, columns)
    return [value if is_open else None for value, is_open in zip(columns[name], opens, strict=True)]


def gates_open(name: str, spec: RewardSpec, columns: Mapping[str, Column]) -> list[bool]:
    """For each rollout, whether all gates of the reward are open; a reward without gates is always open."""
    opens = [True] * len(columns[name])
    for field, gate in conditions_of(name, spec).items():
        holds = [gate.holds(value) for value in columns[gate.reward]]
        opens = [before and now == (field == "only_if") for before, now in zip(opens, holds, strict=True)]
    return opens


def all_abstain(specs: Mapping[str, RewardSpec], columns: Mapping[str, Column], step: int) -> list[bool]:
    """For each rollout, whether no reward with a weight in this step (of any, if none has one) has a raw value.

    A shut gate is no abstention: it says that the value is worth nothing.
    """
    weighted = [columns[name] for name, spec in specs.items() if weight_at(spec, step)]
    weighted = weighted or [*columns.values()]
    return [all(value is None for value in values) for values in zip(*weighted, strict=True)]


def totals_of(parts: Mapping[str, Sequence[float]], lacking: Sequence[bool]) -> tuple[float | None, ...]:
    """Sums of the parts; None for a rollout that has no total."""
    return tuple(
        None if lacks else sum((column[index] for column in parts.values()), start=0.0)
        for index, lacks in enumerate(lacking)
    )


def _clipped(value: float | None, spec: RewardSpec) -> float | None:
    if value is None or spec.clip is None:
        return value
    return min(max(value, spec.clip[0]), spec.clip[1])


def _normalised(column: Column) -> list[float | None]:
    present = [value for value in column if value is not None]
    if not present or not differ(min(present), max(present)):
        return [None if value is None else 0.0 for value in column]
    mean, std = fmean(present), pstdev(present)
    return [None if value is None else (value - mean) / (std + NORMALISE_EPS) for value in column]
