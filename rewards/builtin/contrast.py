"""Rewards that compare a group with completions about changed frames: does the video matter to the answer?

The other completions are sampled beside the group (`rewards.counterfactual`) and never trained on. Where they
could not be sampled (a question without a clip, another order of a picture, no other clip in the batch) a reward
is None, and where the reward `right_by` abstains, which judges the answers: `accuracy`, whose `tolerance` all of
these take, or a graded one, for tasks where an answer can be partly right.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo.groups import Rollout
from rewards import counterfactual, group_reward, reward
from rewards.builtin.rightness import mean_of, rightness


@counterfactual("shuffled")
@group_reward
def t_grpo(
    rollouts: Sequence[Rollout],
    *,
    slack: float = 0.8,
    bonus: float = 0.3,
    tolerance: float = 0.0,
    right_by: str = "accuracy",
    right_above: float = 0.1,
) -> list[float | None]:
    """Video-R1's temporal reward: `bonus` for each right completion, if the group does about as well as it
    would with its frames shuffled, else 0.

    That is: the group's mean accuracy is at least slack times that of half as many completions about shuffled
    frames. With slack=1 it is nearer to the paper, which asks for more than the shuffled accuracy. Right is what
    `right_by` gives more than right_above; Video-R1 grades some answers: `right_by: video_r1_accuracy`. A question
    whose answer does not depend on the order pays the bonus as well, in about every group that has a right
    completion.

    Source: Video-R1's code, src/r1-v/src/open_r1/trainer/grpo_trainer.py; paper arXiv 2503.21776.
    """
    ordered = [rightness(each, right_by, tolerance=tolerance) for each in rollouts]
    mean_ordered = mean_of(ordered)
    values: list[float | None] = []
    for rollout, own in zip(rollouts, ordered, strict=True):
        changed = rollout.counterfactuals["shuffled"]
        shuffled = mean_of([rightness(each, right_by, tolerance=tolerance) for each in changed])
        if own is None or mean_ordered is None or shuffled is None:
            values.append(None)
        else:
            # 0.8 * 0.75 is a little more than 0.6
            passes = mean_ordered >= slack * shuffled - 1e-9
            values.append(bonus if passes and own > right_above else 0.0)
    return values


@counterfactual("blank")
@reward
def blank_contrast(rollout: Rollout, *, tolerance: float = 0.0, right_by: str = "accuracy") -> float | None:
    """For a right completion, the share of completions about black frames that are wrong; 0 for a wrong one.
    Ours.

    Between 0 (also answered blind) and 1 (never answered blind). Equal to accuracy times one minus the blind
    accuracy. Within a group it only scales the difference of right and wrong: it matters beside other
    rewards, and as a gate.
    """
    return contrast(rollout, rollout.counterfactuals["blank"], tolerance=tolerance, right_by=right_by)


@counterfactual("other_clip")
@reward
def other_clip_contrast(
    rollout: Rollout, *, tolerance: float = 0.0, right_by: str = "accuracy"
) -> float | None:
    """As `blank_contrast`, with the clip of another question of the batch in place of black frames. Ours.

    Harder to tell from the right clip than black frames are, but another clip of the same kitchen may well
    show the answer. None where the batch holds no other video.
    """
    return contrast(rollout, rollout.counterfactuals["other_clip"], tolerance=tolerance, right_by=right_by)


def contrast(
    rollout: Rollout, changed: Sequence[Rollout], *, tolerance: float, right_by: str
) -> float | None:
    """Accuracy times the share of the changed completions' accuracy that is missing."""
    blind = mean_of([rightness(each, right_by, tolerance=tolerance) for each in changed])
    own = rightness(rollout, right_by, tolerance=tolerance)
    return None if own is None or blind is None else own * (1 - blind)
