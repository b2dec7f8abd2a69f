"""What a plugin author imports: the two decorators that declare a reward.

A reward is a plain function. What it receives is a `grpo.groups.Rollout`: the completion's text and
tokens, the sample with every column of its record, and the clip as the model saw it.

    from rewards import reward

    @reward
    def brevity(rollout, *, target_tokens: int = 64) -> float:
        return 1.0 if len(rollout.token_ids) <= target_tokens else 0.0

Knobs are keyword-only; the config's `args` sets them. A returned None means "not applicable to this
sample" and adds nothing to the total. An exception, or a value that is no finite number, is a
failure: the rollout gets no total and takes no part in the update. A function without a decorator is
called the way TRL calls one, `fn(prompts=..., completions=..., completion_ids=..., **columns)`, once
for each sample's rollouts, with plain texts, not chat messages, as prompts and completions.
`python -m rewards.check FILE.py:FUNCTION` tries a reward out.

Imports nothing heavy, so that a plugin can be read and tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["group_reward", "reward"]

Function = TypeVar("Function", bound=Callable[..., object])


def reward(fn: Function) -> Function:
    """Declare a reward of one rollout: `fn(rollout, **knobs) -> float | None`."""
    vars(fn)["reward_calling"] = "rollout"
    return fn


def group_reward(fn: Function) -> Function:
    """Declare a reward of a sample's G rollouts: `fn(rollouts, **knobs) -> list[float | None]`."""
    vars(fn)["reward_calling"] = "group"
    return fn
