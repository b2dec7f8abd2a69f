"""Arms in their simulators: states, chunks and what comes of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from grpo.actions.demonstrations import demonstrate, straight
from grpo.actions.simulator import ARMS, CHUNK_STEPS, State, read_state, simulator
from grpo.actions.simulator import SimulatorFailed as Failed

REST = State(arm="reacher", qpos=(-2.6, 2.1, 0.1, -0.1), qvel=(0.0,) * 4)
"""The tip is at 0.1 (cos -2.6, sin -2.6) + 0.11 (cos -0.5, sin -0.5) = (0.0108, -0.1043)."""


def test_the_fingertip_goes_where_the_actions_add_up_to():
    way_2 = np.array([0.03, -0.04])
    outcome = simulator("reacher").execute(REST, straight(way_2, CHUNK_STEPS))
    np.testing.assert_allclose(outcome.tip_2, (0.0408, -0.1443), atol=2e-4)
    assert outcome.tip_T2.shape == (CHUNK_STEPS, 2)


def test_success_is_the_distance_to_the_goal():
    # The target is (0.1, -0.1): the whole way there, and a third of it.
    way_2 = np.array([0.1 - 0.0108, -0.1 + 0.1043])
    arm = simulator("reacher")
    assert arm.execute(REST, straight(way_2, CHUNK_STEPS)).is_success
    assert not arm.execute(REST, straight(way_2 / 3, CHUNK_STEPS)).is_success
    np.testing.assert_allclose(arm.place("target")[:2], (0.1, -0.1))


@pytest.mark.parametrize("name", ARMS)
def test_the_same_chunk_from_the_same_state_ends_the_same_whatever_was_before(name: str):
    arm = simulator(name)
    shown = demonstrate(arm, 3)
    assert shown is not None
    arm.execute(shown.state, -2 * shown.actions_TC)
    again = arm.execute(read_state(shown.state.as_column()), shown.actions_TC)
    assert again.state == shown.outcome.state
    np.testing.assert_array_equal(again.tip_T2, shown.outcome.tip_T2)


def test_physics_that_break_down_are_a_failure_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    arm = simulator("reacher")
    before = arm.execute(REST, np.zeros((2, 2)))
    with pytest.raises(Failed, match="reacher: the physics broke down"):
        arm.execute(dataclasses.replace(REST, qvel=(1e11, 0.0, 0.0, 0.0)), np.zeros((2, 2)))
    assert arm.execute(REST, np.zeros((2, 2))).state == before.state
    assert not [*tmp_path.iterdir()]  # no log of MuJoCo's


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (None, "must have arm, qpos and qvel"),
        ({"arm": "reacher", "qpos": [0.0] * 4}, "must have arm, qpos and qvel"),
        ({"arm": "hand", "qpos": [], "qvel": []}, "no arm 'hand': there are reacher, pusher"),
        ({"arm": "reacher", "qpos": "0 0 0 0", "qvel": [0.0] * 4}, "qpos must be a list of numbers"),
        ({"arm": "reacher", "qpos": [0.0] * 4, "qvel": [float("nan")] * 4}, "qvel has a value"),
    ],
)
def test_a_state_that_is_none_is_refused_by_name(column: object, message: str):
    with pytest.raises(ValueError, match=message):
        read_state(column)


def test_a_state_of_another_arm_or_of_other_joints_is_refused():
    with pytest.raises(
        ValueError, match="a state of reacher with 4 positions and 4 velocities can't be put into pusher"
    ):
        simulator("pusher").put(REST)
    with pytest.raises(ValueError, match="with 3 positions"):
        simulator("reacher").put(dataclasses.replace(REST, qpos=(0.0,) * 3))
