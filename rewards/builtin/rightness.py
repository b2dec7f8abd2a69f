"""How right a completion's answer is, for rewards that build on it and let their knob `right_by` say by which reward.

`right_by` is a built-in or `path/to/file.py:function`, called with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import fmean

from grpo.groups import Rollout
from rewards.builtin.accuracy import accuracy
from rewards.scoring.loading import find_function


def rightness(rollout: Rollout, right_by: str, *, tolerance: float = 0.0) -> float | None:
    """The value of the reward `right_by`, None where it abstains; `tolerance` is that of `accuracy`."""
    if right_by == "accuracy":
        return accuracy(rollout, tolerance=tolerance)
    if tolerance:
        raise ValueError(f"tolerance belongs to right_by: accuracy, not to {right_by}")
    return _function(right_by)(rollout)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Over those that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


@lru_cache
def _function(right_by: str) -> Callable[[Rollout], float | None]:
    fn = find_function(right_by, key="right_by")
    if getattr(fn, "reward_calling", None) != "rollout" or isinstance(fn, type):
        raise ValueError(f"right_by: {right_by} is no @reward function of one rollout")
    if getattr(fn, "reward_counterfactuals", ()):
        raise ValueError(
            f"right_by: {right_by} looks at changed frames, which are sampled for rewards of their own"
        )
    return fn
