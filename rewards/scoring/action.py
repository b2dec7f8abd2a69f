"""Errors of robot actions, in plain numpy: actions are (T, C), places in the plane (2,) in metres."""

from __future__ import annotations

import numpy as np


def mean_absolute_error(made_TC: np.ndarray, true_TC: np.ndarray) -> float:
    """The mean of |a - b| over time steps and channels, in the channels' unit (the L1 error that OpenVLA-OFT trains on,
    arXiv 2502.19645)."""
    return float(np.abs(np.asarray(made_TC, np.float64) - true_TC).mean())


def distance_m(a_2: np.ndarray, b_2: np.ndarray) -> float:
    """The distance |a - b| of two places in the plane, in metres."""
    return float(np.linalg.norm(np.asarray(a_2, np.float64) - b_2))


def falling(error: float, zero_at: float) -> float:
    """1 at no error, falling in a straight line to 0 at zero_at, in the error's unit, and 0 from there on."""
    return 1.0 - min(error / zero_at, 1.0)
