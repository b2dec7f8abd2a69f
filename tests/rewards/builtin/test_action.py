"""Rewards of robot actions, by hand, through a codec of fine bins and through the model's own words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grpo.actions.simulator import CHANNELS, UNITS
from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.streams import Stream, write_stream
from grpo.codec.texts import code_text
from grpo.groups import Rollout
from rewards.builtin.action import action_error, end_effector_distance, task_success
from rewards.hostile import COMPLETIONS, make_group
from rewards.scoring.action import distance_m, falling, mean_absolute_error
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings
from tests.support import tiny

WORDS = "words:0.03"
ALL = (action_error, end_effector_distance, task_success)
TRUTH_TC = np.tile([0.015, 0.0], (6, 1)).astype(np.float32)
"""0.09 m to the right, from (0.0108, -0.1043): the tip ends 1 mm from the target (0.1, -0.1043) less 0.8 mm."""
STATE = {"arm": "reacher", "qpos": [-2.6, 2.1, 0.1008, -0.1043], "qvel": [0.0] * 4}


def stream_of(values_TC: np.ndarray) -> Stream:
    return Stream(
        values_TC=values_TC.astype(np.float32), rate_hz=12.5, start_s=0.0, channels=CHANNELS, units=UNITS
    )


class Scene:
    """A demonstration of six steps, with a codec of bins of 0.0001 m."""

    def __init__(self, folder: Path) -> None:
        extremes = stream_of(np.array([[-0.05125] * 2, [0.05115] * 2]))
        self.codec = save_codec(
            Codec(*fit_bins("action", [extremes], codebook_size=1024, coverage=1.0)), folder / "codec"
        )
        self.folder = str(folder / "codec")
        write_stream(folder / "truth.npz", stream_of(TRUTH_TC))
        self.sample = tiny.sample(
            "a", task="open", options=(), answer="x", streams={"action": str(folder / "truth.npz")}
        )

    def rollout(self, text: str, **columns: object) -> Rollout:
        sample = replace(self.sample, columns={"simulator": STATE} | columns)
        return make_group([text], sample).rollouts[0]

    def text(self, values_TC: np.ndarray) -> str:
        return code_text(self.codec.spec, self.codec.encode(stream_of(values_TC)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("actions"))


def test_formulas_by_hand():
    # |1 - 0| and |2 - 4| in one step, nothing in the other: 3 / 4.
    made_TC, true_TC = np.array([[1.0, 2.0], [5.0, 5.0]]), np.array([[0.0, 4.0], [5.0, 5.0]])
    assert mean_absolute_error(made_TC, true_TC) == 0.75
    assert distance_m(np.array([0.0, 0.3]), np.array([0.4, 0.0])) == pytest.approx(0.5)
    assert [falling(error, 0.2) for error in (0.0, 0.05, 0.2, 7.0)] == [1.0, 0.75, 0.0, 0.0]


TABLE = {
    # completion: action_error (0.02 m), end_effector_distance (0.15 m), task_success (0.03 m)
    "as demonstrated": (TRUTH_TC, 1.0, 1.0, 1.0),
    # The whole way in half of the time: |0.015| in all of six steps, in one of two channels; it ends there, too.
    "faster": (np.array([[0.03, 0.0]] * 3 + [[0.0, 0.0]] * 3), 1 - 0.0075 / 0.02, 1.0, 1.0),
    # 0.045 m of 0.09: |0.0075| / 2; 0.045 m off, more than 0.03.
    "half of the way": (TRUTH_TC / 2, 1 - 0.00375 / 0.02, 1 - 0.045 / 0.15, 0.0),
    # 0.0045 m a step upwards as well: 0.027 m off at the end.
    "aside": (TRUTH_TC + (0.0, 0.0045), 1 - 0.00225 / 0.02, 1 - 0.027 / 0.15, 1.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_by_hand(scene: Scene, name: str):
    actions_TC, error, distance, success = TABLE[name]
    rollout = scene.rollout(scene.text(actions_TC))
    assert action_error(rollout, codec=scene.folder) == pytest.approx(error, abs=0.005)
    assert end_effector_distance(rollout, codec=scene.folder) == pytest.approx(distance, abs=0.01)
    assert task_success(rollout, codec=scene.folder) == success


def test_the_models_own_words_are_executed_too(scene: Scene):
    # 0.09 m in three words, and three that stay.
    right = scene.rollout("right right right stay stay stay")
    assert task_success(right, codec=WORDS) == 1
    assert action_error(right, codec=WORDS) == pytest.approx(1 - 0.0075 / 0.02)
    assert end_effector_distance(right, codec=WORDS) == pytest.approx(1.0, abs=0.01)
    assert task_success(scene.rollout("left right stay stay stay stay"), codec=WORDS) == 0


def test_codes_in_the_wrong_number_or_that_do_not_parse_earn_nothing(scene: Scene):
    right = scene.text(TRUTH_TC)
    texts = [
        "",
        "right",
        right[:-9],
        right * 2,
        scene.text(TRUTH_TC[:5]),
        right.replace("<action_0_", "<action_1_", 1),
    ]
    for text in texts:
        assert [fn(scene.rollout(text), codec=scene.folder) for fn in ALL] == [0] * 3
    for text in ("right right right", "right right right stay stay forward", right):
        assert [fn(scene.rollout(text), codec=WORDS) for fn in ALL] == [0] * 3


def test_questions_without_actions_are_not_scored(scene: Scene):
    rollout = make_group([scene.text(TRUTH_TC)], replace(scene.sample, streams={})).rollouts[0]
    assert {fn(rollout, codec=scene.folder) for fn in ALL} == {None}


def test_hostile_completions_earn_nothing(scene: Scene):
    for text in (*COMPLETIONS.values(), "left " * 20_000, "<action>" * 4_000):
        for codec in (scene.folder, WORDS):
            assert task_success(scene.rollout(text), codec=codec) == 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "simulator: a simulator's state must have arm, qpos and qvel"),
        (STATE | {"qpos": [0.0]}, "a state of reacher with 1 positions"),
    ],
)
def test_a_record_whose_state_is_none_is_refused_by_name(scene: Scene, state: object, message: str):
    with pytest.raises(ValueError, match=message):
        task_success(scene.rollout(scene.text(TRUTH_TC), simulator=state), codec=scene.folder)


def test_a_record_without_a_state_is_refused_by_name(scene: Scene):
    rollout = make_group([scene.text(TRUTH_TC)], scene.sample).rollouts[0]
    assert action_error(rollout, codec=scene.folder) == pytest.approx(1, abs=0.005)
    with pytest.raises(ValueError, match="sample a .*: no column 'simulator'"):
        end_effector_distance(rollout, codec=scene.folder)


def test_a_completion_whose_simulation_fails_leaves_its_group_and_is_counted(scene: Scene):
    # So far that the torques are no numbers. The one after it is executed as if it had not been there.
    texts = ["stay " * 6, "right " * 6, "stay " * 6]
    state = STATE | {"qpos": [-2.6, 2.1, 0.0108, -0.1043]}  # the tip is on the target
    group = make_group(texts, replace(scene.sample, columns={"simulator": state}))
    spec = RewardSpec(args={"codec": "words:1e308"})
    rewards = load_rewards({"task_success": spec}, WorkerSettings(max_workers=1))
    try:
        (table,) = rewards.score([group])
    finally:
        rewards.close()
    assert table.totals == (1.0, None, 1.0)
    (failure,) = table.failures
    assert failure.rollout_index == 1 and "the physics broke down" in failure.summary
