"""Calling a reward on a group, in this process, and turning whatever happens into data.

A value that a reward returned on purpose is data, None included: "not applicable here". An exception, a
value that is no number or a huge one, or a list of the wrong length is a *failure*.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np

from grpo.groups import Group, RewardFailure, Rollout
from rewards.scoring.specs import FAILURES, MAX_SIZE, Calling, Outcome, Reward

MAX_TRACEBACK_CHARS = 10_000


class TrainerState(NamedTuple):
    """The run's state as a TRL reward reads it, under the names of `transformers.TrainerState`."""

    global_step: int = 0
    """The number of finished steps, 0 in the first."""
    max_steps: int = 0


class Failed(NamedTuple):
    """A failure, with fields as in `RewardFailure`."""

    kind: Literal["raised", "late", "died"]
    summary: str
    traceback: str


Result = float | None | Failed
"""A value, an abstention or a failure."""


def run(reward: Reward, group: Group) -> list[Outcome]:
    """A reward's values for a group, with a failure where there is no value."""
    return outcomes_of(reward.name, group, call(reward, group.rollouts, TrainerState()))


def outcomes_of(name: str, group: Group, results: Sequence[Result]) -> list[Outcome]:
    return [
        RewardFailure(
            reward=name,
            sample_id=group.prompt.sample.id,
            rollout_index=index,
            completion=group.rollouts[index].text,
            **result._asdict(),
        )
        if isinstance(result, Failed)
        else result
        for index, result in enumerate(results)
    ]


def failures_in(outcomes: Iterable[Outcome]) -> list[RewardFailure]:
    return [outcome for outcome in outcomes if isinstance(outcome, RewardFailure)]


def call(reward: Reward, rollouts: Sequence[Rollout], state: TrainerState) -> list[Result]:
    """Results of a reward for some rollouts of one sample: all of them unless it looks at each alone."""
    if reward.is_async:
        return asyncio.run(call_async(reward, rollouts, state))
    if reward.calling == "rollout":
        return [
            _attempt(lambda rollout=rollout: reward.function(rollout, **reward.knobs)) for rollout in rollouts
        ]
    try:
        return checked_values(reward, _call_together(reward, rollouts, state), len(rollouts))
    except FAILURES as error:
        return [raised(error)] * len(rollouts)


async def call_async(reward: Reward, rollouts: Sequence[Rollout], state: TrainerState) -> list[Result]:
    """The same of an async reward, whose calls for single rollouts run at the same time."""
    if reward.calling == "rollout":
        return list(await asyncio.gather(*(_attempt_async(reward, rollout) for rollout in rollouts)))
    try:
        return checked_values(reward, await _call_together(reward, rollouts, state), len(rollouts))
    except FAILURES as error:
        return [raised(error)] * len(rollouts)


def _call_together(reward: Reward, rollouts: Sequence[Rollout], state: TrainerState) -> Any:
    if reward.calling == "group":
        return reward.function(tuple(rollouts), **reward.knobs)
    return reward.function(**{**trl_arguments(rollouts, reward.calling, state), **reward.knobs})


async def _attempt_async(reward: Reward, rollout: Rollout) -> Result:
    try:
        return as_value(await reward.function(rollout, **reward.knobs))
    except FAILURES as error:
        return raised(error)


def _attempt(make: Callable[[], object]) -> Result:
    try:
        return as_value(make())
    except FAILURES as error:
        return raised(error)


def checked_values(reward: Reward, values: Any, count: int) -> list[Result]:
    """One result per value; TypeError unless there are so many."""
    if inspect.iscoroutine(values):
        raise TypeError("returned a coroutine: declare the function as async")
    if reward.calling in ("columns", "messages"):
        values = _as_list(values)
    if not isinstance(values, list | tuple) or len(values) != count:
        length = f" of {len(values)}" if isinstance(values, list | tuple) else ""
        raise TypeError(f"returned {type(values).__name__}{length} for a list of {count}")
    return [_attempt(lambda value=value: value) for value in values]


def _as_list(values: Any) -> Any:
    """The list that an array, a tensor or a list of their scalars is, any of which TRL takes."""
    if isinstance(values, list | tuple):
        return [each.item() if getattr(each, "ndim", None) == 0 else each for each in values]
    return values.tolist() if getattr(values, "ndim", None) == 1 else values


def as_value(raw: object) -> float | None:
    """A returned value as a float, None as None; raises if it is no number, or a huge one."""
    if raw is None:
        return None
    if not isinstance(raw, Real | np.bool_):
        hint = ": its .item() is one" if getattr(raw, "ndim", 1) == 0 else ""
        hint = " (for a list of numbers: @group_reward)" if isinstance(raw, list | tuple) else hint
        raise TypeError(f"returned {type(raw).__name__}, not a number or None{hint}")
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, not a finite number")
    if abs(value) > MAX_SIZE:
        raise ValueError(f"returned {value:g}, beyond {MAX_SIZE:g}")
    return value


def trl_arguments(rollouts: Sequence[Rollout], calling: Calling, state: TrainerState) -> dict[str, Any]:
    """The arguments that a TRL reward is called with: lists with one entry per completion, and the run's state.

    As messages or as plain texts, as TRL does for conversational and for plain data sets.
    https://huggingface.co/docs/trl/grpo_trainer#using-a-custom-reward-function
    """
    sample = rollouts[0].sample
    columns: Mapping[str, Any] = {
        **sample.columns,
        "question": sample.question,
        "answer": sample.answer,
        "options": list(sample.options),
        "task": sample.task,
    }
    as_messages = calling == "messages"
    return {name: [value] * len(rollouts) for name, value in columns.items()} | {
        "prompts": [_said("user", sample.question) if as_messages else sample.question for _ in rollouts],
        "completions": [_said("assistant", each.text) if as_messages else each.text for each in rollouts],
        "completion_ids": [list(rollout.token_ids) for rollout in rollouts],
        "trainer_state": state,
        "log_extra": _log_nothing,
        "log_metric": _log_nothing,
    }


def _log_nothing(*_: object, **__: object) -> None:
    """Take what a TRL reward logs, and keep none of it: a run's tables hold the values of rewards alone."""


def raised(error: BaseException) -> Failed:
    """The failure of an exception. Of a long traceback the end is kept, where the reason stands."""
    said = "".join(traceback.format_exception_only(error)).splitlines()
    # A SyntaxError's begins with its file.
    summary = next(line for line in said if not line.startswith("  "))
    return Failed("raised", summary, "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:])


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
