"""Forward kinematics by hand, and the features that decode back to joint positions."""

from __future__ import annotations

import numpy as np
import pytest

from grpo.motion.features import (
    MOTION,
    SENSORS,
    joint_positions,
    local_positions,
    motion_features,
    sensor_features,
)
from grpo.motion.skeleton import (
    INDEX,
    LOWER,
    PARENTS,
    SEGMENTS,
    UPPER,
    forward_kinematics,
    from_quaternion,
    heading,
    rotation,
)


def standing(num_frames: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Root positions and rotations of a body that stands upright and faces x."""
    rotations = np.broadcast_to(np.eye(3), (num_frames, len(SEGMENTS), 3, 3)).copy()
    return np.tile([0.0, 0.0, 0.93], (num_frames, 1)), rotations


def walking_in_a_circle(num_frames: int) -> np.ndarray:
    """A stiff body that goes 0.1 m and turns 0.1 rad with every frame, seen in the world."""
    root, rotations = standing(num_frames)
    yaw = 0.3 + 0.1 * np.arange(num_frames)
    step = 0.1 * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    root[1:, :2] = np.cumsum(step[:-1], axis=0)
    root[:, :2] += (5.0, -2.0)
    return forward_kinematics(root, rotation(2, yaw)[:, None] @ rotations)


def test_the_segments_are_those_of_nymeria_in_their_order():
    assert len(SEGMENTS) == len(PARENTS) == 23
    assert SEGMENTS[:8] == ("Pelvis", "L5", "L3", "T12", "T8", "Neck", "Head", "R_Shoulder")
    assert SEGMENTS[11] == "L_Shoulder" and SEGMENTS[15] == "R_UpperLeg" and SEGMENTS[22] == "L_Toe"
    assert [SEGMENTS[PARENTS[INDEX[name]]] for name in ("L_Shoulder", "L_UpperLeg", "R_Toe")] == [
        "T8",
        "Pelvis",
        "R_Foot",
    ]
    assert len(LOWER) == 8 and sorted(LOWER + UPPER) == list(range(23))


def test_a_body_at_rest_stands_on_the_floor_with_its_arms_hanging():
    positions = forward_kinematics(*standing())[0]
    # 0.93 - 0.43 (thigh) - 0.42 (shank) = 0.08; the toe is 0.07 below the ankle and 0.16 before it.
    assert positions[INDEX["L_Foot"]] == pytest.approx([0.0, 0.09, 0.08])
    assert positions[INDEX["R_Toe"]] == pytest.approx([0.16, -0.09, 0.01])
    # 0.93 + 0.10 + 0.10 + 0.09 + 0.10 to T8; the arm hangs 0.13 above it, 0.29 + 0.25 long, 0.18 beside it.
    assert positions[INDEX["L_Hand"]] == pytest.approx([0.0, 0.18, 1.32 + 0.13 - 0.54])


def test_a_segment_turns_all_that_hangs_on_it():
    root, rotations = standing()
    # A right angle about y lifts the left leg from the hip forward.
    rotations[:, [INDEX["L_UpperLeg"], INDEX["L_LowerLeg"]]] = rotation(1, np.array(-np.pi / 2))
    positions = forward_kinematics(root, rotations)[0]
    assert positions[INDEX["L_Foot"]] == pytest.approx([0.85, 0.09, 0.93])
    assert positions[INDEX["R_Foot"]] == pytest.approx([0.0, -0.09, 0.08])


def test_a_quaternion_is_the_rotation_that_it_means():
    half = np.sqrt(0.5)
    assert from_quaternion(np.array([half, 0, 0, half])) == pytest.approx(rotation(2, np.array(np.pi / 2)))
    assert from_quaternion(np.array([half, half, 0, 0])) == pytest.approx(rotation(0, np.array(np.pi / 2)))


def test_motion_decodes_back_to_positions_from_the_first_frames_place_and_heading():
    positions = walking_in_a_circle(30)
    features = motion_features(positions, rate_hz=10.0)
    assert features.shape == (30, len(MOTION)) and features.dtype == np.float32
    # 0.1 rad and 0.1 m in 0.1 s.
    assert features[:, :4] == pytest.approx(np.tile([1.0, 1.0, 0.0, 0.93], (30, 1)), abs=1e-5)
    back = joint_positions(features, rate_hz=10.0)
    assert heading(back)[0] == pytest.approx(0.0, abs=1e-6)
    from_start = (positions - (5.0, -2.0, 0.0)) @ rotation(2, np.array(0.3))
    assert back == pytest.approx(from_start, abs=1e-4)


def test_local_positions_do_not_know_where_somebody_walks():
    stiff = local_positions(motion_features(walking_in_a_circle(5), rate_hz=10.0))
    assert stiff == pytest.approx(np.tile(forward_kinematics(*standing()), (5, 1, 1)), abs=1e-5)


def test_sensors_are_the_head_and_the_wrists_and_none_of_the_legs():
    root, rotations = standing(4)
    positions = forward_kinematics(root, rotations)
    sensors = sensor_features(positions, rotations, rate_hz=10.0)
    assert sensors.shape == (4, len(SENSORS[3]))
    # No turn, no velocity, the head's height, and the first two columns of the unit matrix.
    assert sensors[0, :10] == pytest.approx([0, 0, 0, 1.6, 1, 0, 0, 0, 1, 0])
    assert sensors[0, 10:13] == pytest.approx([0.0, -0.18, 0.91])
    assert sensor_features(positions, rotations, rate_hz=10.0, num_points=1) == pytest.approx(sensors[:, :10])
    rotations[:, [INDEX[f"{side}_{part}"] for side in "RL" for part in ("UpperLeg", "LowerLeg")]] = rotation(
        1, np.array(-1.0)
    )
    moved = forward_kinematics(root, rotations)
    assert sensor_features(moved, rotations, rate_hz=10.0) == pytest.approx(sensors)
