"""Where a run stands: each figure, time and count from rows whose arithmetic is beside it."""

from __future__ import annotations

import math

import pytest

from grpo.config.load import load_config
from grpo.run.standing import Standing, duration, standing_of, watched
from tests.support import tiny

DEMO = [str(tiny.ROOT / "configs" / "demo.yaml"), "run_dir=x", "model.path=x", "data.train=[{path: x}]"]


def standing(rows: list[dict[str, float]], *overrides: str, num_processes: int = 1) -> Standing:
    config = load_config([*DEMO, "data.eval=[{path: held}]", *overrides])
    return standing_of([watched(row) for row in rows], config, num_processes=num_processes)


def row(step: int, **others: float) -> dict[str, float]:
    return {
        "step": step,
        "reward/mean": 1.5,
        "rewards/accuracy/mean": 0.25,
        "completion/length": 212.4,
        "completion/stopped": 0.9,
        "groups/no_signal": 0.5,
        "sampler/gap_mean": 0.00123,
        "time/step": 30.0,
        **{name.replace("__", "/"): value for name, value in others.items()},
    }


def test_a_step_is_a_line_of_the_figures_that_matter():
    found = standing([row(0), row(7)], "num_steps=17", "eval.every_steps=0")
    assert found.line == (
        "step 7/17: reward=1.5 accuracy=0.25 length=212 gap=0.0012 flat_groups=50% cut=10%, 30 s a step, 5 min left"
    )


def test_a_run_without_a_row_stands_at_its_beginning():
    assert standing([], "num_steps=17").line == "step 0/17"


def test_the_time_left_counts_the_evaluations_that_are_due():
    rows = [row(0, time__eval=100.0), row(4), row(8, time__eval=140.0), row(9, time__step=60.0)]
    # Steps of 30, 30, 30 and 60 s: 37.5 s each, 11 of them are left of 20. Evaluations of 120 s after 12, 16 and 20.
    assert standing(rows, "num_steps=20", "eval.every_steps=4").left_s == 11 * 37.5 + 3 * 120
    # Beside that after 10 and 20, the last step has one of its own: after 22.
    assert standing(rows, "num_steps=22", "eval.every_steps=10").left_s == 13 * 37.5 + 3 * 120
    assert standing(rows, "num_steps=20", "eval.every_steps=0").left_s == 11 * 37.5
    assert standing([*rows, row(20)], "num_steps=20", "eval.every_steps=4").left_s == 0


def test_hours_are_those_of_all_processes_and_of_the_run_before_a_resumption():
    rows = [row(step, time__step=1500.0, time__eval=300.0) for step in range(4)]
    assert standing(rows, num_processes=8).process_hours == pytest.approx(4 * 1800 / 3600 * 8)


def test_held_out_accuracy_is_shown_before_the_rewards_of_held_out_answers():
    scores = {"eval__held__accuracy": 0.5, "eval__held__format": 1.0, "eval__held__lost": 2.0}
    [found] = standing([row(0, **scores), row(1)]).held_out
    assert (found.label, found.steps, found.values) == ("held accuracy", (0,), (0.5,))
    [other] = standing([row(0, eval__held__format=1.0, eval__held__length=9.0)]).held_out
    assert other.label == "held format"


def test_warnings_are_those_of_the_rules_of_the_run_and_of_its_latest_step():
    rows = [row(step, groups__no_signal=0.9) for step in range(12)] + [row(12, completion__empty=1.0)]
    assert [each.name for each in standing(rows).warnings] == ["flat groups", "all empty"]


def test_figures_that_are_no_numbers_keep_the_ones_before():
    [reward, *_] = standing([row(1), row(2, reward__mean=math.nan)]).figures
    assert (reward.steps, reward.values) == ((1,), (1.5,))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (3.21, "3.2 s"), (41.4, "41 s"), (90, "2 min"), (3600 * 3 + 600, "3 h 10 min"),
     (86400 * 2 + 3600 * 4, "2 d 4 h"), (3599.9, "1 h 0 min")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str):
    assert duration(seconds) == text
