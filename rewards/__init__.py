"""What a plugin author imports: the decorators that declare a reward.

A reward is a plain function. What it receives is a `grpo.groups.Rollout`: the completion's text and
tokens, the sample with every column of its record, and the clip as the model saw it.

    from rewards import reward

    @reward
    def brevity(rollout, *, target_tokens: int = 64) -> float:
        return 1.0 if len(rollout.token_ids) <= target_tokens else 0.0

Knobs are keyword-only; the config's `args` sets them. A returned None means "not applicable to this
sample" and adds nothing to the total. An exception, or a value that is no finite number, is a
failure: the rollout gets no total and takes no part in the update.

It may be `async def`, or a class: its keyword-only constructor takes the knobs, it is made once, and its
decorated `__call__(self, rollout)` (or `rollouts`) is the reward. A function without a decorator is called
the way TRL calls one, `fn(prompts=..., completions=..., completion_ids=..., **columns)`, once for each
sample's rollouts.
`egogrpo check FILE.py:FUNCTION` tries a reward out.

Beside it, `parsing.py` reads the parts of a completion, `spelling.py` folds the spellings of an answer, and
`hostile.py` has completions to try a reward on. This file imports nothing heavy, so that a plugin can be read and
tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

__all__ = ["Counterfactual", "counterfactual", "group_reward", "reward"]

Function = TypeVar("Function", bound=Callable[..., object])

Frames = Literal["shuffled", "reversed", "blank", "other_clip", "cited", "cited_in_place"]
"""How the frames of a counterfactual prompt differ: in another order, backwards, black, those of another
question, the cited ones alone, or all but the cited ones black. The last two differ for each rollout."""


class Counterfactual(NamedTuple):
    """Completions of the same question about changed frames, that a reward compares with.

    No dataclass: `dataclasses` loads `inspect`, most of what importing this package would cost.
    """

    frames: Frames
    num_samples: int | None = None
    """The completions for a group, or for a rollout where the frames are the cited ones; None: half the group size."""
    greedy: bool = False
    """Take the likeliest token instead of sampling as in training."""


def reward(fn: Function) -> Function:
    """Declare a reward of one rollout: `fn(rollout, **knobs) -> float | None`."""
    return _mark(fn, "reward_calling", "rollout")


def group_reward(fn: Function) -> Function:
    """Declare a reward of a sample's G rollouts: `fn(rollouts, **knobs) -> list[float | None]`."""
    return _mark(fn, "reward_calling", "group")


def counterfactual(
    frames: Frames, *, num_samples: int | None = None, greedy: bool = False
) -> Callable[[Function], Function]:
    """Declare that a reward reads `rollout.counterfactuals[frames]`: completions that the engine samples beside the
    group, which are never trained on. Goes below or above `@reward`; may be repeated."""
    wanted = Counterfactual(frames=frames, num_samples=num_samples, greedy=greedy)

    def declare(fn: Function) -> Function:
        return _mark(fn, "reward_counterfactuals", (*vars(fn).get("reward_counterfactuals", ()), wanted))

    return declare


def _mark(fn: Function, name: str, value: object) -> Function:
    # Also on a class, whose __dict__ can't be written.
    setattr(fn, name, value)
    return fn
