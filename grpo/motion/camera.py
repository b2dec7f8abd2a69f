"""Frames as a camera on the walker's head sees them: a chequered floor, and its own legs, feet and arms."""

from __future__ import annotations

import numpy as np

from grpo.motion.skeleton import INDEX
from grpo.motion.walker import Motion

SIZE_PX = 56
FOCAL_PX = 40.0
"""A view of 70 degrees."""
TILT_RAD = 1.1
"""How far the camera looks below where the head faces, as in glasses that film hands."""
TILE_M = 0.5
LIMBS = {
    "{}_UpperLeg {}_LowerLeg": (0.08, {"R": (205, 60, 50), "L": (60, 90, 225)}),
    "{}_LowerLeg {}_Foot": (0.06, {"R": (230, 110, 90), "L": (110, 150, 250)}),
    "{}_Foot {}_Toe": (0.06, {"R": (250, 220, 60), "L": (240, 250, 250)}),
    "{}_UpperArm {}_Forearm": (0.045, {"R": (120, 170, 120), "L": (120, 170, 120)}),
    "{}_Forearm {}_Hand": (0.04, {"R": (225, 170, 135), "L": (225, 170, 135)}),
}
"""The limbs that are drawn, from segment to segment, with their radius in metres and colours."""
_POINTS = 7
"""The balls that make up a limb."""

_RAYS_HW3 = np.stack(
    np.broadcast_arrays(
        1.0,
        *np.meshgrid(*[(SIZE_PX / 2 - 0.5 - np.arange(SIZE_PX)) / FOCAL_PX] * 2, indexing="xy"),
    ),
    axis=-1,
)
"""The direction of each pixel in the camera's axes: x into the picture, y to its left, z up."""


def film(motion: Motion, rng: np.random.Generator, *, every: int) -> np.ndarray:
    """The frames (F, H, W, C), uint8, of every so many steps of a motion, under a light and on a floor of its own."""
    # x and y are the floor's axes: its tiles don't tell a heading from another, as a room would.
    origin_2, colours_23 = rng.uniform(0, 2, 2), rng.uniform(70, 190, (2, 3))
    exposure = rng.uniform(0.85, 1.1)
    head = INDEX["Head"]
    down_33 = _pitch(TILT_RAD)
    frames = []
    for step in range(0, len(motion.positions_TJ3), every):
        positions_J3 = motion.positions_TJ3[step]
        camera_33 = motion.rotations_TJ33[step, head] @ down_33
        eye_3 = positions_J3[head] + motion.rotations_TJ33[step, head] @ np.array([0.16, 0.0, 0.08])
        frame_HWC = _floor(camera_33, eye_3, origin_2, colours_23)
        _draw_limbs(frame_HWC, camera_33, eye_3, positions_J3)
        frames.append(frame_HWC)
    noise = rng.normal(0, 4, (len(frames), SIZE_PX, SIZE_PX, 1))
    return np.clip(np.stack(frames) * exposure + noise, 0, 255).astype(np.uint8)


def _pitch(angle_rad: float) -> np.ndarray:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def _floor(
    camera_33: np.ndarray, eye_3: np.ndarray, origin_2: np.ndarray, colours_23: np.ndarray
) -> np.ndarray:
    """The tiles that the rays meet, and a pale wall where they don't look down."""
    rays_HW3 = _RAYS_HW3 @ camera_33.T
    down_HW = np.minimum(rays_HW3[..., 2], -1e-3)
    hit_HW2 = eye_3[:2] + rays_HW3[..., :2] * (-eye_3[2] / down_HW)[..., None]
    tile_HW = (np.floor((hit_HW2 + origin_2) / TILE_M).sum(-1) % 2).astype(int)
    frame_HWC = colours_23[tile_HW]
    frame_HWC[rays_HW3[..., 2] > -0.15] = (200, 200, 195)
    return frame_HWC


def _draw_limbs(
    frame_HWC: np.ndarray, camera_33: np.ndarray, eye_3: np.ndarray, positions_J3: np.ndarray
) -> None:
    """Draw limbs as rows of balls, far ones first."""
    shares_N1 = np.linspace(0, 1, _POINTS)[:, None]
    balls: list[tuple[float, float, float, float, tuple[int, int, int]]] = []
    for names, (radius_m, colours) in LIMBS.items():
        for side, colour in colours.items():
            start_3, end_3 = (positions_J3[INDEX[name]] for name in names.format(side, side).split())
            points_N3 = (start_3 + (end_3 - start_3) * shares_N1 - eye_3) @ camera_33
            for depth_m, left_m, up_m in points_N3[points_N3[:, 0] > 0.12]:
                x_px, y_px = (SIZE_PX / 2 - 0.5 - FOCAL_PX * side_m / depth_m for side_m in (left_m, up_m))
                balls.append((depth_m, x_px, y_px, FOCAL_PX * radius_m / depth_m, colour))
    for depth_m, x_px, y_px, radius_px, colour in sorted(balls, key=lambda ball: -ball[0]):
        _draw_disc(frame_HWC, x_px, y_px, radius_px, np.array(colour) * (1.15 - 0.15 * depth_m))


def _draw_disc(frame_HWC: np.ndarray, x_px: float, y_px: float, radius_px: float, colour: np.ndarray) -> None:
    top, left = (max(int(centre - radius_px), 0) for centre in (y_px, x_px))
    part_HWC = frame_HWC[top : max(int(y_px + radius_px) + 2, 0), left : max(int(x_px + radius_px) + 2, 0)]
    rows_H1 = top + np.arange(part_HWC.shape[0])[:, None] - y_px
    columns_W = left + np.arange(part_HWC.shape[1]) - x_px
    part_HWC[rows_H1**2 + columns_W**2 <= radius_px**2] = colour
