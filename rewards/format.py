"""`format`: is the completion exactly the blocks that the prompt asked for?"""

from __future__ import annotations

from grpo.groups import Rollout
from rewards import reward
from rewards.parsing import blocks_in_order


@reward
def format(rollout: Rollout) -> float | None:
    """1 if the completion is the asked blocks, once each, in order, none blank, nothing beside; else 0.

    None where the prompt asked for no tags. What the blocks say is the other rewards' business.
    """
    if not rollout.tags:
        return None
    return float(blocks_in_order(rollout.text, rollout.tags) is not None)
