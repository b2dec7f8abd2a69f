"""A reward of the golden trace that fails where it is told to."""

from __future__ import annotations

from rewards import reward


@reward
def refuses(rollout) -> float:
    """The number of the completion's characters by 50; a RuntimeError for a text that begins with "refuse"."""
    if rollout.text.startswith("refuse"):
        raise RuntimeError("it refuses")
    return len(rollout.text) / 50
