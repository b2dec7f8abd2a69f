"""Warnings in words: each is given for the run that it is about, and not for one a little to its side."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.run.trend_rules import RECENT, trends_of, warnings_of_run

WEIGHTS = {"accuracy": 1.0, "style": 0.5}


def rows(count: int = 40, **series: object) -> list[dict[str, float]]:
    """Rows of a run in which all is well, with some figures as functions of the step or as constants."""
    made = []
    for step in range(count + 1):
        row: dict[str, float] = {"step": step, "groups/no_signal": 0.2, "completion/stopped": 1.0}
        row |= {"completion/length": 100.0, "reward/mean": step / 40, "rewards/accuracy/mean": step / 40}
        row |= {"rewards/style/mean": 0.5 + 0.001 * (step % 3)}
        if step % 5 == 0:
            row["eval/set/accuracy"] = step / 40
        for key, value in series.items():
            name = key.replace("__", "/")
            if name in row:
                row[name] = value(step) if callable(value) else value  # pyright: ignore[reportArgumentType]
        made.append(row)
    return made


def names(given: list[dict[str, float]]) -> list[str]:
    return [each.name for each in trends_of(given, WEIGHTS)]


def test_a_run_in_which_all_is_well_and_one_that_has_just_begun_have_no_warning():
    assert names(rows()) == names(rows(0)) == names([]) == []


@pytest.mark.parametrize(("share", "expected"), [(0.92, ["flat groups"]), (0.79, [])])
def test_flat_groups(share: float, expected: list[str]):
    found = trends_of(rows(groups__no_signal=share), WEIGHTS)
    assert [each.name for each in found] == expected
    assert all("92% of the groups" in each.text for each in found)


@pytest.mark.parametrize(("stopped", "expected"), [(0.1, ["cut completions"]), (0.3, [])])
def test_cut_completions(stopped: float, expected: list[str]):
    assert names(rows(completion__stopped=stopped)) == expected


def test_few_steps_say_nothing_of_how_a_run_is():
    assert names(rows(RECENT - 2, groups__no_signal=1.0)) == []
    assert names(rows(RECENT, groups__no_signal=1.0)) == ["flat groups"]


def test_two_rewards_of_the_same_number():
    (found,) = trends_of(rows(rewards__style__mean=lambda step: step / 40), WEIGHTS)
    assert found.name == "equal rewards" and "accuracy and style" in found.text
    # Two that both stay at one value may be a coincidence.
    assert names(rows(rewards__style__mean=1.0, rewards__accuracy__mean=1.0)) == []


def test_a_reward_that_is_paid_while_accuracy_falls_is_named_with_the_step():
    hacked = rows(
        eval__set__accuracy=lambda step: 0.7 if step <= 20 else 0.4,
        rewards__accuracy__mean=lambda step: 0.7 if step <= 20 else 0.4,
        rewards__style__mean=lambda step: 0.1 if step <= 24 else 0.9,
    )
    (found,) = trends_of(hacked, WEIGHTS)
    assert found.name == "accuracy falls" and (found.reward, found.from_step) == ("style", 20)
    assert "from 0.7 at step 0 to 0.4" in found.text and "style rises from about step 25 on" in found.text


def test_accuracy_that_falls_with_the_total_or_by_little_is_no_such_case():
    falls: dict[str, Any] = {"eval__set__accuracy": lambda step: 0.7 - step / 100}
    assert names(rows(**falls)) == ["accuracy falls"]
    assert names(rows(**falls, reward__mean=lambda step: -step / 40)) == []
    assert names(rows(eval__set__accuracy=lambda step: 0.7 - step / 1000)) == []


def test_what_the_latest_step_says_comes_behind():
    found = warnings_of_run(rows(completion__stopped=0.0), WEIGHTS, 8)
    assert [each.name for each in found] == ["cut completions", "all cut"]
    assert warnings_of_run([], WEIGHTS, 8) == []


def test_length_that_grows_without_reward():
    grows: dict[str, Any] = {"completion__length": lambda step: 100.0 + 5 * step}
    assert names(rows(**grows, reward__mean=0.5)) == ["length without reward"]
    assert names(rows(**grows)) == []
