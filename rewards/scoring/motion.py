"""Errors of body motion, in plain numpy: positions are (T, J, 3) in metres, joints are numbers of segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTACT_M, SKATE_M_S = 0.05, 0.5
"""A foot below this height that moves faster than this skates: 2.5 cm from frame to frame at 20 Hz."""


def mpjpe_mm(made_TJ3: np.ndarray, true_TJ3: np.ndarray, joints: Sequence[int]) -> float:
    """The mean per-joint position error in millimetres: the mean distance |p - q| over frames and joints."""
    return float(1000 * np.linalg.norm((made_TJ3 - true_TJ3)[:, joints], axis=-1).mean())


def mpjve_mm_s(made_TJ3: np.ndarray, true_TJ3: np.ndarray, joints: Sequence[int], *, rate_hz: float) -> float:
    """The mean per-joint velocity error in mm/s, of two frames or more: the mean of |(p' - p) - (q' - q)| * rate."""
    return mpjpe_mm(np.diff(made_TJ3, axis=0), np.diff(true_TJ3, axis=0), joints) * rate_hz


def skate_frac(positions_TJ3: np.ndarray, feet: Sequence[int], *, rate_hz: float) -> float:
    """The share of steps from frame to frame in which some foot is low in both, and moves over the floor too fast."""
    feet_TK3 = positions_TJ3[:, feet]
    low_TK = np.maximum(feet_TK3[1:, :, 2], feet_TK3[:-1, :, 2]) < CONTACT_M
    fast_TK = np.linalg.norm(np.diff(feet_TK3[..., :2], axis=0), axis=-1) * rate_hz > SKATE_M_S
    return float((low_TK & fast_TK).any(axis=1).mean())
