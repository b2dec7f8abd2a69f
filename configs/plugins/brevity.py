"""A reward of your own: say what is needed and stop.

In a config (the path is relative to where you start the run):

    rewards:
      brevity: {fn: configs/plugins/brevity.py:brevity, weight: 0.1, only_if: accuracy, args: {target_tokens: 32}}

Try it out first: egogrpo check configs/plugins/brevity.py:brevity target_tokens=32
"""

from grpo.groups import Rollout
from rewards import reward


# @reward: called with one rollout. @group_reward: called with all rollouts of a sample, to compare them.
# What stands after the * are the knobs that the config's `args` sets.
@reward
def brevity(rollout: Rollout, *, target_tokens: int = 64) -> float:
    """1 up to the target, then falling to 0 at twice the target."""
    # rollout.text is the completion, rollout.sample the question with every column of its record
    # (rollout.sample.columns["..."]), rollout.clip the frames and their times as the model saw them.
    excess = len(rollout.token_ids) / target_tokens - 1
    # A bad completion gets a low number. None says "does not apply to this sample"; an exception is
    # a bug: it takes the rollout out of the update, and is counted.
    return 1 - min(max(excess, 0.0), 1.0)
