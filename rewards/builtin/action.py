"""Rewards of robot actions: a completion's chunk against a demonstration, and executed in the simulator.

codec: the folder of the codec that the policy's vocabulary was grown with, `codecs/action` of its model folder, which
decodes the completion's one span `<action> ... </action>`; or `words:0.03`, for completions in the model's own words,
each of which moves the fingertip so many metres. A completion that does not parse, or whose chunk has another length
than the demonstrated one, earns 0. None is "this sample has no stream `action`".

The simulator starts in the record's column `simulator` each time, so that a completion earns the same whatever was
executed before. Where the physics breaks down the reward raises: that completion has failed, and leaves its group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from grpo.actions.dataset import STATE, STREAM
from grpo.actions.simulator import Outcome, State, read_state, simulator
from grpo.actions.words import Words
from grpo.codec.codec import load_codec
from grpo.codec.streams import read_stream
from grpo.codec.texts import parse_codes
from grpo.groups import Rollout, Sample
from rewards import reward
from rewards.scoring.action import distance_m, falling, mean_absolute_error

WORDS = "words:"
_truth = lru_cache(maxsize=4096)(read_stream)


@reward
def action_error(rollout: Rollout, *, codec: str, zero_at: float = 0.02) -> float | None:
    """1 less the mean absolute error of the actions over zero_at, 0 from there on: 1 - min(e / zero_at, 1); 0 to 1.

    e is the mean of |a - b| over time steps and channels, between the completion's chunk and the demonstrated one, in
    the actions' unit (metres for the arms here); OpenVLA-OFT's L1 error (arXiv 2502.19645). Nothing is executed.

    The cheap hack is the mean of all demonstrations: choose zero_at so that it earns little. And it punishes another
    way to the goal that is as good.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    return falling(mean_absolute_error(*found), zero_at)


@reward
def end_effector_distance(rollout: Rollout, *, codec: str, zero_at_m: float = 0.15) -> float | None:
    """1 less the fingertip's distance from where the demonstration takes it, over zero_at_m, 0 from there on; 0 to 1.

    Both chunks are executed in the simulator, from the same state; the distance d is in the plane, in metres, after the
    arm has settled: 1 - min(d / zero_at_m, 1). Of our own design, after the distance term of gymnasium's Reacher.

    It has a slope where `task_success` is flat. The cheap hack is the place in the middle of all goals.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    state = _state(rollout.sample)
    made, true = (_executed(state, each_TC) for each_TC in found)
    return falling(distance_m(made.tip_2, true.tip_2), zero_at_m)


@reward
def task_success(rollout: Rollout, *, codec: str) -> float | None:
    """1 if the task is done when the completion's chunk has been executed in the simulator, else 0.

    Done is what the task says: the fingertip at most 0.03 m from the target, or the pushed disc at most 0.05 m from the
    goal, in the plane (`ARMS` in grpo/actions/simulator.py). It needs no demonstration but for the chunk's length.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    return float(_executed(_state(rollout.sample), found[0]).is_success)


def _decoded(rollout: Rollout, codec: str) -> tuple[np.ndarray, np.ndarray] | float | None:
    """The actions (T, C) that the completion stands for and the demonstrated ones; the reward where there are none."""
    if STREAM not in rollout.sample.streams:
        return None
    true_TC = _truth(Path(rollout.sample.streams[STREAM])).values_TC
    try:
        made_TC = _reader(codec)(rollout.text)
    except ValueError:
        return 0.0
    return (made_TC, true_TC) if made_TC.shape == true_TC.shape else 0.0


@lru_cache
def _reader(codec: str) -> Callable[[str], np.ndarray]:
    """What turns a completion into actions; it raises ValueError for one that stands for none."""
    if codec.startswith(WORDS):
        return Words(word_m=float(codec.removeprefix(WORDS))).read
    loaded = load_codec(codec)
    return lambda text: loaded.decode(parse_codes(loaded.spec, text))


def _state(sample: Sample) -> State:
    """The state that the sample's chunk starts in; ValueError names the sample without one."""
    if STATE not in sample.columns:
        raise ValueError(
            f"sample {sample.id} ({sample.source}): no column {STATE!r} with the simulator's state"
        )
    try:
        return read_state(sample.columns[STATE])
    except ValueError as error:
        raise ValueError(f"sample {sample.id} ({sample.source}): {STATE}: {error}") from None


def _executed(state: State, actions_TC: np.ndarray) -> Outcome:
    return _execute(state, tuple(map(tuple, actions_TC.tolist())))


# Two rewards execute the same chunk, and a group's completions are all compared with the same demonstration.
@lru_cache(maxsize=4096)
def _execute(state: State, actions: tuple[tuple[float, ...], ...]) -> Outcome:
    return simulator(state.arm).execute(state, np.array(actions))
