"""Scoring groups: totals, gates, abstentions, failures, TRL's way of calling, and the probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.groups import Group, RewardTable, Rollout
from rewards import group_reward, hostile, reward
from rewards.hostile import COMPLETIONS, make_group, synthetic_samples
from rewards.scoring.calling import TrainerState
from rewards.scoring.loading import as_reward
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import RewardSpec

SAMPLE = replace(synthetic_samples({})[0], columns={"solution": "red", "weights": [1, 2]})
GROUP = make_group([COMPLETIONS["right"], COMPLETIONS["wrong"], ""], SAMPLE)


def set_of(*fns: Callable[..., Any], weight: float = 1.0, **args: Any) -> RewardSet:
    """A reward set of functions of this file, without their way through a config."""
    return RewardSet([as_reward(fn.__name__, fn, RewardSpec(weight=weight, args=args)) for fn in fns])


def test_the_total_is_the_plain_weighted_sum() -> None:
    # Annotated are 3.0-4.5 and 7.0. "right" cites 3.5: precision 1, recall 1/2, F1 2/3. "wrong" cites
    # 0.0-8.0, a miss, and answers A.
    specs = {
        "accuracy": RewardSpec(weight=1.0),
        "format": RewardSpec(weight=0.5),
        "keyframe": RewardSpec(weight=3.0),
    }
    table = load_rewards(specs).score([GROUP])[0]
    assert table.columns["accuracy"] == (1.0, 0.0, 0.0)
    assert table.columns["format"] == (1.0, 1.0, 0.0)
    assert table.columns["keyframe"] == pytest.approx((2 / 3, 0.0, 0.0))
    assert table.totals == pytest.approx((1.0 + 0.5 + 2.0, 0.5, 0.0))
    assert table.failures == ()


def test_weight_zero_keeps_the_column_and_adds_nothing() -> None:
    table = load_rewards({"accuracy": RewardSpec(), "format": RewardSpec(weight=0.0)}).score([GROUP])[0]
    assert table.columns["format"] == (1.0, 1.0, 0.0)
    assert table.totals == (1.0, 0.0, 0.0)


def test_a_negative_weight_is_a_penalty() -> None:
    assert load_rewards({"format": RewardSpec(weight=-2.0)}).score([GROUP])[0].totals == (-2.0, -2.0, 0.0)


def test_only_if_counts_a_reward_where_the_gates_raw_value_is_positive() -> None:
    specs = {"accuracy": RewardSpec(weight=0.0), "format": RewardSpec(weight=0.5, only_if="accuracy")}
    table = load_rewards(specs).score([GROUP])[0]
    assert table.columns["format"] == (1.0, 1.0, 0.0)  # raw values know no gate
    assert table.totals == (0.5, 0.0, 0.0)  # the gate's own weight does not matter


def test_a_gate_that_abstains_is_closed() -> None:
    group = make_group([COMPLETIONS["right"]], replace(SAMPLE, keyframes_s=()))
    specs = {"keyframe": RewardSpec(), "format": RewardSpec(only_if="keyframe")}
    table = load_rewards(specs).score([group])[0]
    assert (table.columns["keyframe"], table.totals, table.failures) == ((None,), (0.0,), ())


def test_an_abstention_adds_nothing_and_a_failure_leaves_no_total() -> None:
    @reward
    def moody(rollout: Rollout) -> float | None:
        if rollout.text == COMPLETIONS["wrong"]:
            raise KeyError("gaze")
        return None

    @reward
    def one(rollout: Rollout) -> float:
        return 1.0

    table = set_of(one, moody).score([GROUP])[0]
    assert table.columns == {"one": (1.0, 1.0, 1.0), "moody": (None, None, None)}
    assert table.totals == (1.0, None, 1.0)
    (failure,) = table.failures
    assert (failure.reward, failure.sample_id, failure.rollout_index) == ("moody", SAMPLE.id, 1)
    assert "in moody" in failure.traceback and failure.summary == "KeyError: 'gaze'"


def test_a_completion_on_which_all_rewards_abstain_has_no_total() -> None:
    @reward
    def few_words(rollout: Rollout) -> float | None:
        return None if rollout.text == COMPLETIONS["wrong"] else 0.0

    table = set_of(few_words).score([GROUP])[0]
    assert (table.totals, table.failures) == ((0.0, None, 0.0), ())


@pytest.mark.parametrize("value", [1e308, -1e308, 2e9])
def test_a_huge_value_is_a_failure_that_names_its_reward(value: float) -> None:
    @reward
    def huge(rollout: Rollout) -> float:
        return value if rollout.text == COMPLETIONS["right"] else -1e9

    (table,) = set_of(huge).score([GROUP])
    assert table.totals == (None, -1e9, -1e9)
    (failure,) = table.failures
    assert failure.reward == "huge" and failure.summary == f"ValueError: returned {value:g}, beyond 1e+09"


def test_a_failure_leaves_no_total_unless_the_reward_is_only_watched(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from rewards import reward\n@reward\ndef broken(rollout):\n    raise RuntimeError('down')\n"
    )

    def table(weight: float, gate: str | None = None) -> RewardTable:
        broken = RewardSpec(fn=f"{plugin}:broken", weight=weight)
        return load_rewards({"accuracy": RewardSpec(only_unless=gate), "broken": broken}).score([GROUP])[0]

    assert table(-0.5).totals == table(0.0, gate="broken").totals == (None, None, None)
    watched = table(0.0)
    assert watched.columns["broken"] == (None, None, None) and len(watched.failures) == 3
    assert watched.totals == watched.columns["accuracy"] != (None, None, None)


def test_what_fails_on_one_group_leaves_the_others_alone() -> None:
    @group_reward
    def of_three(rollouts: Sequence[Rollout]) -> list[float]:
        return [1.0 / (len(rollouts) - 1)] * len(rollouts)

    alone = make_group(["x"], SAMPLE)
    tables = set_of(of_three).score([GROUP, alone, GROUP])
    assert [table.totals for table in tables] == [(0.5,) * 3, (None,), (0.5,) * 3]
    assert tables[1].failures[0].summary == "ZeroDivisionError: float division by zero"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (Fraction(1, 4), 0.25),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_any_real_number_is_a_value(value: object, number: float | None) -> None:
    @reward
    def returns(rollout: Rollout) -> object:
        return value

    assert set_of(returns).score([GROUP])[0].columns["returns"] == (number,) * 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan, not a finite number"),
        (float("-inf"), "-inf, not a finite number"),
        (10**400, "OverflowError"),
        ("1.0", "str, not a number"),
        ([1.0], "list, not a number"),
        (1j, "complex, not a number"),
        (np.zeros(1), "ndarray, not a number"),
        (torch.tensor(1.0), "Tensor, not a number"),
        (torch.ones(2), "Tensor, not a number"),
    ],
)
def test_anything_else_is_a_failure(value: object, message: str) -> None:
    @reward
    def alone(rollout: Rollout) -> object:
        return value if rollout.text else 0.0

    @group_reward
    def together(rollouts: Sequence[Rollout]) -> list[object]:
        return [value if rollout.text else 0.0 for rollout in rollouts]

    for fn in (alone, together):
        table = set_of(fn).score([GROUP])[0]
        assert table.totals == (None, None, 0.0)
        assert [failure.rollout_index for failure in table.failures] == [0, 1]
        assert message in table.failures[0].summary


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "list of 2 for a list of 3"),
        (1.0, "float for a list"),
        (None, "NoneType"),
        (np.zeros(3), "ndarray"),
        (torch.zeros(3), "Tensor"),
    ],
)
def test_a_list_of_the_wrong_kind_fails_for_the_whole_group(values: object, message: str) -> None:
    @group_reward
    def returns(rollouts: Sequence[Rollout]) -> object:
        return values

    table = set_of(returns).score([GROUP])[0]
    assert table.totals == (None, None, None)
    assert [failure.rollout_index for failure in table.failures] == [0, 1, 2]
    assert message in table.failures[0].summary


def test_a_reward_that_exits_does_not_end_the_run_but_the_user_does() -> None:
    @reward
    def leaves(rollout: Rollout) -> float:
        raise SystemExit(0)

    @reward
    def interrupted(rollout: Rollout) -> float:
        raise KeyboardInterrupt

    assert set_of(leaves).score([GROUP])[0].failures[0].summary == "SystemExit: 0"
    with pytest.raises(KeyboardInterrupt):
        set_of(interrupted).score([GROUP])


def test_an_undecorated_function_is_called_as_trl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def trl_style(prompts, completions, completion_ids, solution, *, bonus=0.0, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, ids=completion_ids, solution=solution)
        return [bonus, None, 1.0]

    table = set_of(trl_style, bonus=0.25).score([GROUP])[0]
    assert table.columns["trl_style"] == (0.25, None, 1.0)
    assert table.totals == (0.25, None, 1.0)
    assert seen == {
        "prompts": [SAMPLE.question] * 3,
        "completions": [rollout.text for rollout in GROUP.rollouts],
        "ids": [list(rollout.token_ids) for rollout in GROUP.rollouts],
        "solution": ["red"] * 3,
        "weights": [[1, 2]] * 3,
        "question": [SAMPLE.question] * 3,
        "answer": ["B"] * 3,
        "options": [list(SAMPLE.options)] * 3,
        "task": ["choice"] * 3,
        "trainer_state": TrainerState(),
        "log_extra": seen["log_extra"],
        "log_metric": seen["log_metric"],
    }


def test_trls_own_rewards_run_unchanged() -> None:
    trl_rewards = pytest.importorskip("trl.rewards")
    # 5 completion tokens, of which those beyond 4 - 2 = 2 are punished up to 4: -1.
    # 3-grams of 1 2 1 2 1: (1 2 1) (2 1 2) (1 2 1): 2 of 3 unique, so -(1 - 2/3).
    rollouts = [replace(GROUP.rollouts[0], token_ids=ids) for ids in ((1, 2), (1, 2, 1), (1, 2, 1, 2, 1))]
    group = replace(GROUP, rollouts=tuple(rollouts))
    overlong = trl_rewards.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
    repetition = trl_rewards.get_repetition_penalty_reward(ngram_size=3)
    table = set_of(overlong, repetition).score([group])[0]
    assert table.columns["soft_overlong_punishment_reward"] == (0.0, -0.5, -1.0)
    assert table.columns["repetition_penalty_reward"] == pytest.approx((0.0, 0.0, -1 / 3))


def test_trls_own_answer_and_format_rewards_run_unchanged() -> None:
    pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    texts = [
        r"<think>x</think> It is \boxed{\frac{1}{3}}.",
        r"<think>x</think> It is \boxed{\frac{1}{2}}.",
        r"It is \boxed{\frac{1}{3}}.",  # right, but the reasoning has no end
    ]
    names = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
    rewards = load_rewards({name: RewardSpec(fn=f"trl.rewards:{name}") for name in names})
    solutions = [r"$\frac{1}{3}$", "no formula"]
    samples = [replace(SAMPLE, columns={"solution": solution}) for solution in solutions]
    right, unknown = rewards.score([make_group(texts, sample) for sample in samples])
    assert right.columns == {
        "accuracy_reward": (1.0, 0.0, 1.0),
        "reasoning_accuracy_reward": (1.0, 0.0, 0.0),
        "think_format_reward": (1.0, 1.0, 0.0),
    }
    assert unknown.columns["accuracy_reward"] == (None, None, None) and unknown.failures == ()
    assert rewards.probe() == ["accuracy_reward"]  # its "B" is no formula


def test_the_built_ins_pass_the_probe() -> None:
    rewards = load_rewards({name: RewardSpec() for name in ("accuracy", "format", "keyframe")})
    assert rewards.probe() == []
    tables = rewards.score(hostile.groups())  # what it is probed with
    assert len(tables) == 3 * len(synthetic_samples({}))
    assert [failure for table in tables for failure in table.failures] == []


@reward
def raises_on_empty(rollout: Rollout) -> float:
    return 1.0 / len(rollout.text)


@reward
def raises_on_digits(rollout: Rollout) -> float:
    return (
        float(int(rollout.text.partition("<answer>")[2].partition("<")[0])) if "9999" in rollout.text else 0.0
    )


@reward
def infinite(rollout: Rollout) -> float:
    return float("inf") if "1e999" in rollout.text else 0.0


@reward
def worded(rollout: Rollout) -> str:
    return "good"


@group_reward
def standardised(rollouts: Sequence[Rollout]) -> list[float]:
    lengths = np.array([len(rollout.text) for rollout in rollouts], float)
    with np.errstate(invalid="ignore"):
        return list((lengths - lengths.mean()) / lengths.std())


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (raises_on_empty, "rewards.raises_on_empty: ZeroDivisionError: float division by zero"),
        (raises_on_digits, "rewards.raises_on_digits: ValueError: Exceeds the limit"),
        (infinite, "rewards.infinite: ValueError: returned inf"),
        (worded, "rewards.worded: TypeError: returned str"),
        (standardised, "rewards.standardised: ValueError: returned nan"),
    ],
)
def test_the_probe_names_the_reward_and_what_it_did(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        set_of(fn).probe()
    text = str(caught.value)
    assert text.startswith(message) and "\n" not in text and "probed with sample probe-" in text


def test_the_probe_gives_a_trl_reward_the_columns_it_asks_for() -> None:
    seen: list[str] = []

    def trl_style(completions, solution, **kwargs):
        seen.extend(solution)
        return [float(text == wanted) for text, wanted in zip(completions, solution, strict=True)]

    set_of(trl_style).probe()
    assert len(seen) > len(COMPLETIONS) and set(seen) == {"B"}


def test_the_probe_takes_the_runs_own_samples_for_rewards_that_read_columns() -> None:
    @reward
    def reads_a_column(rollout: Rollout) -> float:
        assert rollout.clip is not None
        return float(sum(rollout.sample.columns["weights"]))

    set_of(reads_a_column).probe([SAMPLE])
    with pytest.raises(ValueError, match="KeyError: 'weights'"):
        set_of(reads_a_column).probe()


@given(st.lists(st.lists(st.sampled_from(list(COMPLETIONS.values())), min_size=1, max_size=5), max_size=4))
@settings(max_examples=30, deadline=None)
def test_scoring_all_groups_at_once_is_scoring_each_alone(parts: list[list[str]]) -> None:
    rewards = load_rewards({name: RewardSpec(only_if=None) for name in ("accuracy", "format", "keyframe")})
    groups: list[Group] = [make_group(texts, SAMPLE) for texts in parts]
    tables = rewards.score(groups)
    assert tables == [rewards.score([group])[0] for group in groups]
    for group, table in zip(groups, tables, strict=True):
        assert len(table.totals) == len(group.rollouts) and table.failures == ()
        assert all(value is None or 0 <= value <= 1 for column in table.columns.values() for value in column)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_text_makes_a_built_in_fail(text: str) -> None:
    rewards = load_rewards({name: RewardSpec() for name in ("accuracy", "format", "keyframe")})
    wrapped = f"<think>x</think><keyframes>{text}</keyframes><answer>{text}</answer>"
    groups = [make_group([text, wrapped], sample) for sample in synthetic_samples({})]
    assert all(table.failures == () for table in rewards.score(groups))
