"""Rewards for the form of a completion: the blocks that the prompt asked for.

`format` is the strict one. The others give part of it to a policy that has it only nearly. What the blocks say
is other rewards' business. All of them: None where the prompt asked for no tags.
"""

from __future__ import annotations

from itertools import combinations

from grpo.groups import Rollout
from rewards import reward
from rewards.parsing import blocks_in_order, is_blank, only_block


@reward
def format(rollout: Rollout) -> float | None:
    """1 if the completion is the asked blocks, once each, in order, none blank, nothing beside; else 0.

    None where the prompt asked for no tags. What the blocks say is the other rewards' business.
    """
    if not rollout.tags:
        return None
    return float(blocks_in_order(rollout.text, rollout.tags) is not None)


@reward
def format_lenient(rollout: Rollout) -> float | None:
    """As `format`, 1 or 0, but text may stand before, between and after the blocks."""
    if not rollout.tags:
        return None
    blocks = [only_block(rollout.text, tag) for tag in rollout.tags]
    starts = [rollout.text.find(f"<{tag}>") for tag in rollout.tags]
    whole = all(block is not None and not is_blank(block) for block in blocks)
    return float(whole and starts == sorted(starts))


@reward
def tag_order(rollout: Rollout) -> float | None:
    """Share, 0 to 1, of the pairs of asked tags that both occur and whose first opening marks are in the asked
    order. None where fewer than two were asked for."""
    pairs = list(combinations([rollout.text.find(f"<{tag}>") for tag in rollout.tags], 2))
    if not pairs:
        return None
    return sum(0 <= first < second for first, second in pairs) / len(pairs)


@reward
def tags_once(rollout: Rollout) -> float | None:
    """Share, 0 to 1, of the asked tags whose block occurs exactly once: opened, closed, no output tag inside."""
    if not rollout.tags:
        return None
    return sum(only_block(rollout.text, tag) is not None for tag in rollout.tags) / len(rollout.tags)
