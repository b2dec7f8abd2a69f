"""The skeleton of 23 segments in XSens' order, as in Nymeria, with forward kinematics and rotations in plain numpy.

Names, order and parents are those of Nymeria (facebookresearch/nymeria_dataset, nymeria/xsens_constants.py:
`part_names`, `kintree_parents`). A segment's position is that of its origin, the joint to its parent. Axes: x forward,
y left, z up; lengths are metres. Shapes: T frames, J = 23 segments.
"""

from __future__ import annotations

import numpy as np

ARM = ("Shoulder", "UpperArm", "Forearm", "Hand")
LEG = ("UpperLeg", "LowerLeg", "Foot", "Toe")
SPINE = ("Pelvis", "L5", "L3", "T12", "T8", "Neck", "Head")
SEGMENTS = (*SPINE, *(f"{side}_{part}" for parts in (ARM, LEG) for side in "RL" for part in parts))
PARENTS = (-1, 0, 1, 2, 3, 4, 5, 4, 7, 8, 9, 4, 11, 12, 13, 0, 15, 16, 17, 0, 19, 20, 21)
INDEX = {name: number for number, name in enumerate(SEGMENTS)}
LOWER = tuple(INDEX[f"{side}_{part}"] for side in "RL" for part in LEG)
UPPER = tuple(number for number in range(len(SEGMENTS)) if number not in LOWER)
"""The lower body is both legs from the hip joints down, and the upper body all other segments, the pelvis too."""

_SPINE_M = {"L5": 0.10, "L3": 0.10, "T12": 0.09, "T8": 0.10, "Neck": 0.18, "Head": 0.10}
_LIMBS_M = {
    "Shoulder": (0.0, 0.04, 0.13),
    "UpperArm": (0.0, 0.14, 0.0),
    "Forearm": (0.0, 0.0, -0.29),
    "Hand": (0.0, 0.0, -0.25),
    "UpperLeg": (0.0, 0.09, 0.0),
    "LowerLeg": (0.0, 0.0, -0.43),
    "Foot": (0.0, 0.0, -0.42),
    "Toe": (0.16, 0.0, -0.07),
}
ANKLE_M, TOE_M = 0.08, 0.01
"""The heights of a flat foot's ankle and toe joint above the floor."""


def _rest_offsets() -> np.ndarray:
    offsets_J3 = np.zeros((len(SEGMENTS), 3))
    for name, height_m in _SPINE_M.items():
        offsets_J3[INDEX[name], 2] = height_m
    for side, sign in (("R", -1.0), ("L", 1.0)):
        for part, (x, y, z) in _LIMBS_M.items():
            offsets_J3[INDEX[f"{side}_{part}"]] = (x, sign * y, z)
    return offsets_J3


OFFSETS_J3 = _rest_offsets()
"""Each segment's origin seen from its parent's, of a body of 1.7 m that stands with its arms hanging down."""


def forward_kinematics(
    root_T3: np.ndarray, rotations_TJ33: np.ndarray, offsets_J3: np.ndarray = OFFSETS_J3
) -> np.ndarray:
    """The segments' positions (T, J, 3) in metres, of the pelvis' position and each segment's rotation in the world.

    An origin lies where its parent's rotation puts its offset: p_j = p_parent + R_parent o_j.
    """
    positions_TJ3 = np.zeros((len(root_T3), len(SEGMENTS), 3))
    positions_TJ3[:, 0] = root_T3
    for segment, parent in list(enumerate(PARENTS))[1:]:
        positions_TJ3[:, segment] = positions_TJ3[:, parent] + rotations_TJ33[:, parent] @ offsets_J3[segment]
    return positions_TJ3


def rotation(axis: int, angle_rad: np.ndarray) -> np.ndarray:
    """Right-handed rotations (..., 3, 3) about the axis 0, 1 or 2, x, y or z."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    matrices = np.zeros((*np.shape(angle_rad), 3, 3))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrices[..., axis, axis] = 1.0
    matrices[..., first, first] = matrices[..., second, second] = cos
    matrices[..., second, first], matrices[..., first, second] = sin, -sin
    return matrices


def from_quaternion(quaternion_wxyz: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) of unit quaternions (..., 4), whose real part comes first."""
    w, x, y, z = np.moveaxis(quaternion_wxyz, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def along(direction_T3: np.ndarray, side_T3: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) that turn -z, a hanging limb, into a direction, and keep y as near to a side as they can."""
    down = direction_T3 / np.linalg.norm(direction_T3, axis=-1, keepdims=True)
    forward = np.cross(side_T3, -down)
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    return np.stack([forward, np.cross(-down, forward), -down], axis=-1)


def heading(positions_TJ3: np.ndarray) -> np.ndarray:
    """Where the hips face (T,), in radians from x towards y: at right angles to the line between the hip joints."""
    across = positions_TJ3[:, INDEX["L_UpperLeg"]] - positions_TJ3[:, INDEX["R_UpperLeg"]]
    return np.arctan2(-across[:, 0], across[:, 1])
