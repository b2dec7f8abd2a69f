"""Every kind of reward there can be, as short as it gets: copy the one that you need.

rewards:
  rarity:    {fn: configs/plugins/kinds.py:rarity, weight: 0.1}
  first_try: {fn: configs/plugins/kinds.py:Novelty, weight: 0.1, args: {memory: 1000}}
  ...
"""

import asyncio
from collections import deque

from grpo.groups import Rollout
from rewards import counterfactual, group_reward, reward
from rewards.builtin.accuracy import accuracy


@reward
def sees_motion(rollout: Rollout, *, threshold: float = 1.0) -> float | None:
    """A reward that looks at frames: 1 if the clip moves at all and the completion says so."""
    if rollout.clip is None:
        return None  # a question about text alone: does not apply
    frames_FHWC = rollout.clip.frames_FHWC.astype(float)  # sent to the reward's process on first use
    moves = abs(frames_FHWC[1:] - frames_FHWC[:-1]).mean() > threshold
    return float(("moves" in rollout.text) == moves)


@group_reward
def rarity(rollouts: tuple[Rollout, ...]) -> list[float]:
    """A reward that compares the rollouts of one question: the rarer a completion, the better."""
    texts = [rollout.text for rollout in rollouts]
    return [1 / texts.count(text) for text in texts]


class Novelty:
    """A reward with a state: made once, with its knobs; all calls go to the same object, one after another.

    Once per process of the trainer, that is, and a resumed run starts with a new one.
    """

    def __init__(self, *, memory: int = 1000) -> None:
        self.seen: deque[str] = deque(maxlen=memory)

    @reward
    def __call__(self, rollout: Rollout) -> float:
        is_new = rollout.text not in self.seen
        self.seen.append(rollout.text)
        return float(is_new)


@reward
async def remote(rollout: Rollout, *, seconds: float = 0.05) -> float:
    """A reward that waits for something: all its calls run at the same time."""
    await asyncio.sleep(seconds)  # here: a request to a service
    return float(len(rollout.text) > 0)


@reward
@counterfactual("blank", greedy=True)
def needs_eyes(rollout: Rollout) -> float | None:
    """A reward that compares with what the policy says about a black clip (sampled for it, never trained on)."""
    blind = rollout.counterfactuals["blank"]
    if not blind:
        return None  # nothing could be sampled: a question without a clip
    return max(0.0, accuracy(rollout) - accuracy(blind[0]))


def trl_style(completions: list[str], answer: list[str], **kwargs: object) -> list[float]:
    """A reward written for TRL, without a decorator: called with columns, once per question."""
    return [
        float(f"<answer>{right}</answer>" in text) for text, right in zip(completions, answer, strict=True)
    ]
