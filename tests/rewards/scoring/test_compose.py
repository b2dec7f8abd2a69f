"""From raw values to totals, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from grpo.groups import RewardTable, ScoredGroup
from grpo.run.group_metrics import group_metrics
from rewards.hostile import make_group, synthetic_samples
from rewards.scoring.compose import (
    Condition,
    all_abstain,
    check_specs,
    parts_of,
    read_condition,
    totals_of,
    weight_at,
)
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec

COLUMNS = {
    "right": (1.0, 0.0, 1.0, None),
    "graded": (0.9, 0.4, None, 0.6),
}


def parts(step: int = 0, *, normalise: bool = False, **specs: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Of COLUMNS; a reward that is not given has weight 0."""
    given = {name: RewardSpec(**specs.get(name, {"weight": 0.0})) for name in COLUMNS}
    return parts_of(given, COLUMNS, step, normalise=normalise)


def test_a_part_is_the_weighted_value_and_an_abstention_adds_nothing() -> None:
    assert parts(graded={"weight": 2.0})["graded"] == pytest.approx((1.8, 0.8, 0.0, 1.2))


def test_the_total_is_the_sum_of_the_parts_and_none_where_a_reward_failed() -> None:
    found = parts(right={"weight": 1.0}, graded={"weight": 0.5})
    assert totals_of(found, [False, False, True, False]) == pytest.approx((1.45, 0.2, None, 0.3))


def test_all_abstain_where_no_reward_with_a_weight_has_a_value() -> None:
    columns = {
        "right": (1.0, None, None, None),
        "graded": (None, 0.0, None, None),
        "seen": (1.0, 1.0, 1.0, None),
    }
    plain = {name: RewardSpec(weight=float(name != "seen")) for name in columns}
    assert all_abstain(plain, columns, 1) == [False, False, True, True]
    # A shut gate makes 0 of a value; it takes away no knowledge of it.
    gated = plain | {"graded": RewardSpec(only_if="right")}
    assert all_abstain(gated, columns, 1) == [False, False, True, True]
    assert all_abstain({name: RewardSpec(weight=0.0) for name in columns}, columns, 1) == [False] * 3 + [True]
    # A weight that the schedule has taken away counts no more than one that was never there.
    faded = plain | {"right": RewardSpec(schedule=[[0, 1.0], [100, 0.0]])}
    assert all_abstain(faded, columns, 50) == [False, False, True, True]
    assert all_abstain(faded, columns, 200) == [True, False, True, True]


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("right", 0.1, True),
        ("right", 0.0, False),
        ("right", None, False),
        ("right >= 0.5", 0.5, True),
        ("right > 0.5", 0.5, False),
        ("right<0.5", 0.4, True),
        ("right <= -1e-3", -0.001, True),
        ("right == 1", 1.0, True),
        ("right == 1", None, False),
    ],
)
def test_a_condition_compares_the_raw_value(text: str, value: float | None, holds: bool) -> None:
    assert read_condition(text, key="k").holds(value) is holds


def test_a_condition_names_a_reward_and_a_number() -> None:
    assert read_condition("graded >= 0.5", key="k") == Condition("graded", ">=", 0.5)
    for text in ("", "a b", "a >", "a > b", "a > 1.2.3", "> 1", "a => 1"):
        with pytest.raises(ValueError, match=r"rewards\.x\.only_if: .* is neither a reward's name nor"):
            read_condition(text, key="rewards.x.only_if")


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_threshold_that_nothing_reaches_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=rf"rewards\.x\.only_if: in 'a > {number}', {number} is no finite"):
        read_condition(f"a > {number}", key="rewards.x.only_if")


def test_the_share_of_rollouts_whose_gates_are_open_is_logged() -> None:
    specs = {
        "right": RewardSpec(),
        "graded": RewardSpec(only_if="right"),
        "other": RewardSpec(only_unless="right", only_if="graded < 0.5"),
        "never": RewardSpec(only_if="graded > 7"),
    }
    columns = COLUMNS | {"other": (None,) * 4, "never": (1.0,) * 4}  # a value or none makes no difference
    group = make_group(["x"] * 4, synthetic_samples({})[0])
    none = (0.0,) * 4
    table = RewardTable(columns=columns, parts={}, totals=none, failures=())
    scored = ScoredGroup(group=group, table=table, advantages=none)
    figures = group_metrics(scored, specs, min_std=0.0).reduced()
    opened = {key: value for key, value in figures.items() if key.endswith("/open")}
    assert opened == {"rewards/graded/open": 0.5, "rewards/other/open": 0.25, "rewards/never/open": 0.0}


def test_only_if_counts_where_its_gate_holds_and_only_unless_where_it_does_not() -> None:
    only_if = parts(graded={"only_if": "right"})["graded"]
    assert only_if == pytest.approx((0.9, 0.0, 0.0, 0.0))
    only_unless = parts(graded={"only_unless": "right"})["graded"]
    assert only_unless == pytest.approx((0.0, 0.4, 0.0, 0.6))  # a gate that abstains does not hold
    both = parts(right={"only_if": "graded > 0.5", "only_unless": "graded > 0.8"})["right"]
    assert both == pytest.approx((0.0, 0.0, 0.0, 0.0))


def test_the_clipped_value_counts_and_gates_see_the_raw_one() -> None:
    found = parts(graded={"clip": (0.5, 0.7), "weight": 2.0}, right={"only_if": "graded > 0.8"})
    assert found["graded"] == pytest.approx((1.4, 1.0, 0.0, 1.2))
    assert found["right"] == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("schedule", "step", "weight"),
    [
        ([], 5, 2.0),
        ([[10, 0], [20, 1]], 0, 0.0),
        ([[10, 0], [20, 1]], 10, 0.0),
        ([[10, 0], [20, 1]], 15, 1.0),
        ([[10, 0], [20, 1]], 99, 2.0),
        ([[0, 1], [100, 0.5]], 50, 1.5),
        ([[0, 0], [10, 1], [20, 1], [30, 0]], 25, 1.0),
        ([[7, 0.5]], 3, 1.0),
    ],
)
def test_a_schedule_is_straight_lines_between_points(
    schedule: list[list[float]], step: int, weight: float
) -> None:
    assert weight_at(RewardSpec(weight=2.0, schedule=schedule), step) == pytest.approx(weight)


def test_normalised_rewards_have_mean_0_and_std_1_where_they_count() -> None:
    # graded counts 0.9, 0.4, 0.6: mean 0.63333, population std 0.20548. (0.9 - 0.63333) / 0.20558 = 1.29714
    found = parts(normalise=True, graded={"weight": 0.5})["graded"]
    assert found == pytest.approx((0.64857, -0.56750, 0.0, -0.08107), abs=1e-5)
    # Behind a gate one value is left: nothing to compare it with.
    assert parts(normalise=True, graded={"only_if": "right"})["graded"] == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("values", [(0.2,) * 16, (0.1 + 0.2, 0.3), (3.0, 3.0 + 4e-16)])
def test_a_flat_reward_adds_exactly_nothing_when_normalised(values: tuple[float, ...]) -> None:
    specs = {"flat": RewardSpec()}
    assert parts_of(specs, {"flat": values}, 0, normalise=True)["flat"] == (0.0,) * len(values)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"weight": math.nan}, r"rewards\.a\.weight: nan is no finite number"),
        ({"weight": -1e300}, r"rewards\.a\.weight: -1e\+300 is beyond 1e\+09"),
        ({"clip": (1.0, 0.0)}, r"rewards\.a\.clip: \[1\.0, 0\.0\] is no \[lower, upper\]"),
        ({"timeout_s": 0.0}, r"rewards\.a\.timeout_s: must be above 0"),
        ({"schedule": [[0]]}, r"rewards\.a\.schedule: .* is no list of \[step, factor\]"),
        ({"schedule": [[5, 1], [5, 2]]}, r"rewards\.a\.schedule: the steps .* do not rise"),
        ({"schedule": [[0, math.inf]]}, r"rewards\.a\.schedule"),
        ({"only_if": "c"}, r"rewards\.a\.only_if: no reward named 'c'"),
        ({"only_unless": "b > x"}, r"rewards\.a\.only_unless: 'b > x' is neither"),
        ({"only_unless": "b"}, r"rewards\.[ab]\.only_(if|unless): goes round in a circle: "),
    ],
)
def test_a_spec_that_means_nothing_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_specs({"a": RewardSpec(**spec), "b": RewardSpec(only_if="a")})


def test_a_reward_of_other_tasks_is_not_even_called() -> None:
    choice, number = synthetic_samples({})[0], synthetic_samples({})[3]
    assert (choice.task, number.task) == ("choice", "number")
    rewards = load_rewards({"accuracy": RewardSpec(tasks=["number"]), "format": RewardSpec(tasks=["choice"])})
    tables = rewards.score([make_group(["<answer>42</answer>"] * 2, sample) for sample in (choice, number)])
    assert [table.columns["accuracy"] for table in tables] == [(None, None), (1.0, 1.0)]
    assert [table.columns["format"] for table in tables] == [(0.0, 0.0), (None, None)]


def test_a_schedule_reaches_the_table() -> None:
    rewards = load_rewards({"accuracy": RewardSpec(schedule=[[0, 0], [10, 1]])})
    group = make_group(["<answer>B</answer>"], replace(synthetic_samples({})[0], answer="B"))
    assert [rewards.score([group], step)[0].totals for step in (0, 5, 10)] == [(0.0,), (0.5,), (1.0,)]
