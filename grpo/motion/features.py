"""Motion and sensors as streams of numbers per frame, and the way back to joint positions in metres.

A frame of motion has 70 numbers, in the frame of the hips' heading above the pelvis' point on the floor: the turn and
the two velocities of that frame, the pelvis' height, and the other 22 segments' positions. A frame of a sensor stream
has 10 for the head (its turn and velocities, height and rotation), and 9 for each wrist, seen from the head's heading.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grpo.motion.skeleton import INDEX, SEGMENTS, heading, rotation

MOVES = {"turn": "rad/s", "forward": "m/s", "left": "m/s", "height": "m"}
POSITIONS = {f"{name}.{axis}": "m" for name in SEGMENTS[1:] for axis in "xyz"}
MOTION = {**{f"Pelvis.{name}": unit for name, unit in MOVES.items()}, **POSITIONS}
"""The channels of a stream of motion with their units."""

WRISTS = ("R_Hand", "L_Hand")
ROTATION = {f"r{row}{column}": "1" for column in "01" for row in "012"}
HEAD_POINT = {f"Head.{name}": unit for name, unit in (MOVES | ROTATION).items()}
WRIST_POINTS = {
    f"{hand}.{name}": unit
    for hand in WRISTS
    for name, unit in ({"x": "m", "y": "m", "z": "m"} | ROTATION).items()
}
SENSORS = {1: HEAD_POINT, 3: HEAD_POINT | WRIST_POINTS}
"""The channels of a stream of one sensor (head) or three (head and wrists). A rotation is its matrix' first two columns
(Zhou et al., arXiv 1812.07035)."""


def motion_features(positions_TJ3: np.ndarray, rate_hz: float) -> np.ndarray:
    """The channels `MOTION` (T, 70) of segments' positions in the world, of two frames or more."""
    yaw_T = heading(positions_TJ3)
    local_TJ3 = _seen_from(positions_TJ3, positions_TJ3[:, 0], yaw_T)
    moves_T3 = _moves(positions_TJ3[:, 0], yaw_T, rate_hz)
    return np.hstack([moves_T3, local_TJ3[:, :1, 2], local_TJ3[:, 1:].reshape(len(yaw_T), -1)]).astype(
        np.float32
    )


def local_positions(motion_TC: np.ndarray) -> np.ndarray:
    """The segments' positions (T, J, 3) in metres in each frame's own heading, above the pelvis' point on the floor."""
    pelvis_T13 = np.zeros((len(motion_TC), 1, 3))
    pelvis_T13[:, 0, 2] = motion_TC[:, 3]
    return np.concatenate([pelvis_T13, motion_TC[:, 4:].reshape(len(motion_TC), -1, 3)], axis=1)


def positions(motion_TC: Any) -> Any:
    """All lengths in metres of motion's channels, arrays or tensors, for a codec's loss: heights and positions."""
    return motion_TC[..., 3:]


def joint_positions(motion_TC: np.ndarray, rate_hz: float) -> np.ndarray:
    """The segments' positions (T, J, 3) in metres, in the first frame's heading and from its point on the floor."""
    before_TC = np.vstack([np.zeros((1, motion_TC.shape[1])), motion_TC[:-1]])
    yaw_T = np.cumsum(before_TC[:, 0]) / rate_hz
    start_yaw_T = np.concatenate([[0.0], yaw_T[:-1]])
    step_T3 = np.pad(before_TC[:, 1:3], ((0, 0), (0, 1))) / rate_hz
    place_T3 = np.cumsum((rotation(2, start_yaw_T) @ step_T3[:, :, None])[:, :, 0], axis=0)
    return local_positions(motion_TC) @ rotation(2, yaw_T).swapaxes(-1, -2) + place_T3[:, None]


def sensor_features(
    positions_TJ3: np.ndarray, rotations_TJ33: np.ndarray, rate_hz: float, num_points: int = 3
) -> np.ndarray:
    """The channels `SENSORS[num_points]` (T, 10 or 28) of the head's and the wrists' positions and rotations."""
    head, wrists = INDEX["Head"], [INDEX[name] for name in WRISTS]
    forward_T3 = rotations_TJ33[:, head, :, 0]
    yaw_T = np.arctan2(forward_T3[:, 1], forward_T3[:, 0])
    place_TJ3 = _seen_from(positions_TJ3, positions_TJ3[:, head], yaw_T)
    turned_TJ33 = rotation(2, -yaw_T)[:, None] @ rotations_TJ33
    columns_TJ6 = turned_TJ33[..., :2].swapaxes(-1, -2).reshape(*turned_TJ33.shape[:2], 6)
    parts = [_moves(positions_TJ3[:, head], yaw_T, rate_hz), place_TJ3[:, head, 2:], columns_TJ6[:, head]]
    if num_points == 3:
        parts += [part for hand in wrists for part in (place_TJ3[:, hand], columns_TJ6[:, hand])]
    return np.hstack(parts).astype(np.float32)


def _seen_from(positions_TJ3: np.ndarray, origin_T3: np.ndarray, yaw_T: np.ndarray) -> np.ndarray:
    """Positions from the points on the floor below origins, in their headings."""
    floor_T3 = origin_T3 * (1.0, 1.0, 0.0)
    return (positions_TJ3 - floor_T3[:, None]) @ rotation(2, yaw_T)


def _moves(origin_T3: np.ndarray, yaw_T: np.ndarray, rate_hz: float) -> np.ndarray:
    """The turn (rad/s), and the velocities forward and left (m/s), to the next frame (T, 3); the last repeats."""
    turn_T = np.diff(np.unwrap(yaw_T)) * rate_hz
    step_T3 = np.diff(origin_T3, axis=0)[:, None] @ rotation(2, yaw_T[:-1])
    moves_T3 = np.column_stack([turn_T, step_T3[:, 0, :2] * rate_hz])
    return np.vstack([moves_T3, moves_T3[-1:]])
