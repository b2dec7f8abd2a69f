"""Rewards for the length of a completion, in tokens with the end-of-turn token.

Some of them ask whether the answer is right: of the reward that their knob `right_by` names, a built-in or
`path/to/file.py:function`, called with its defaults; right is what gets more than `right_above`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from grpo.groups import Rollout
from rewards import group_reward, reward
from rewards.builtin.rightness import rightness


@group_reward
def length_window(
    rollouts: Sequence[Rollout],
    *,
    min_tokens: int = 320,
    max_tokens: int = 512,
    min_right: int = 2,
    right_by: str = "accuracy",
    right_above: float = 0.1,
) -> list[float | None]:
    """1 for a right completion of min_tokens to max_tokens, both included, if at least `min_right` of the
    group are right; else 0.

    Video-R1's length reward (arXiv 2503.21776 and its trainer), which adds 0.2: set `weight: 0.2`. Its accuracy
    is graded: `right_by: video_r1_accuracy` reproduces it. None for all where `right_by` abstains.

    The cheap hack is padding: whatever fills a right completion up to min_tokens earns it. Watch `repetition`, with
    `weight: 0` at least.
    """
    values = [rightness(rollout, right_by) for rollout in rollouts]
    right = [value is not None and value > right_above for value in values]
    return [
        None
        if value is None
        else float(each and sum(right) >= min_right and min_tokens <= len(rollout.token_ids) <= max_tokens)
        for rollout, value, each in zip(rollouts, values, right, strict=True)
    ]


@reward
def overlong(rollout: Rollout, *, max_tokens: int, cache_tokens: int | None = None) -> float:
    """0 up to max_tokens - cache_tokens, then falling in a straight line to -1 at max_tokens, and -1 beyond.

    DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13; there 20480 and 4096). Set max_tokens to
    `rollout.max_new_tokens`, so that what was cut off gets -1. Right or wrong makes no difference. cache_tokens None:
    a fifth of max_tokens, as there.
    """
    cache_tokens = max(1, max_tokens // 5) if cache_tokens is None else cache_tokens
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(f"overlong: cache_tokens={cache_tokens} is not in 1..max_tokens={max_tokens}")
    over = len(rollout.token_ids) - (max_tokens - cache_tokens)
    # 0.0 -: not -0
    return 0.0 - min(max(over / cache_tokens, 0.0), 1.0)


@reward
def cosine_length(
    rollout: Rollout,
    *,
    max_tokens: int,
    right_start: float = 2.0,
    right_end: float = 1.0,
    wrong_start: float = -10.0,
    wrong_end: float = 0.0,
    exceeded: float = -10.0,
    right_by: str = "accuracy",
    right_above: float = 0.1,
) -> float | None:
    """Half a cosine from the start value at no tokens to the end value at max_tokens, one curve for right
    answers and one for wrong ones; `exceeded` from max_tokens on. Ranges over these five values.

    With the defaults, the paper's, the short right and the long wrong answers are the better ones
    (arXiv 2502.03373, section 4.2). None where `right_by` abstains.
    """
    value = rightness(rollout, right_by)
    if value is None:
        return None
    if len(rollout.token_ids) >= max_tokens:
        return exceeded
    start, end = (right_start, right_end) if value > right_above else (wrong_start, wrong_end)
    return end + (start - end) * (1 + math.cos(math.pi * len(rollout.token_ids) / max_tokens)) / 2


@reward
def brevity(rollout: Rollout, *, target_tokens: int) -> float:
    """1 up to the target, then falling in a straight line to 0 at twice the target. Our own; right or wrong makes
    no difference, so gate it: `only_if: accuracy`."""
    if target_tokens < 1:
        raise ValueError(f"brevity: target_tokens={target_tokens} is below 1")
    return 1 - min(max(len(rollout.token_ids) / target_tokens - 1, 0.0), 1.0)
