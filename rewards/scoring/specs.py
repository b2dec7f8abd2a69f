"""Rewards as a config states them, and ready to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Gt

from grpo.groups import RewardFailure
from rewards import Counterfactual

MAX_SIZE = 1e9
"""The largest value of a reward, and the largest weight, of either sign: means and stds of sums of their products are
far from the limits of a float then."""
FAILURES = (Exception, SystemExit)
"""What a reward's code may raise: one that calls sys.exit() must not end the run, let alone with status 0."""

Calling = Literal["rollout", "group", "columns", "messages"]
"""How a reward is called: with one rollout, with a sample's rollouts, or as TRL does, with columns, its completions
as plain texts or as chat messages."""


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """A reward as configured, under its name."""

    fn: Annotated[str | None, "path"] = None
    """A built-in's name, `package.module:function`, `path/to/file.py:function` or an entry point of the group
    `grpo.rewards`; None: the built-in or entry point of the reward's own name."""
    weight: float = 1.0
    """0 keeps the column as a metric and adds nothing to the total."""
    schedule: list[list[float]] = field(default_factory=list)
    """Factors on the weight over the run, as [step, factor] points with straight lines between them:
    [[0, 0], [100, 1]] warms up, [[0, 1], [500, 0]] fades out. Empty: 1."""
    args: dict[str, Any] = field(default_factory=dict)
    only_if: str | None = None
    """Counts only on rollouts where another reward is above 0 (`accuracy`) or passes a threshold
    (`accuracy >= 0.5`)."""
    only_unless: str | None = None
    """Counts only on rollouts where the same kind of condition does not hold."""
    clip: tuple[float, float] | None = None
    """Limits that the raw value is clipped to before it counts; the column keeps the raw one."""
    tasks: list[str] | None = None
    """Tasks of the samples it applies to; it abstains on others. None: all."""
    timeout_s: Annotated[float, "free"] = 60.0
    """The longest that a step waits for the reward, from the moment that the last rollout is sampled. A completion that
    is not scored by then has failed. A replay gives it as long from each value to the next. A resumed run may change
    it."""
    counterfactual_samples: int | None = None
    """How many completions are sampled for each set that it declares; None: as it declares."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The processes that rewards run in."""

    max_workers: Annotated[int, Ge(0)] = 64
    """The most workers at once; there are more than a few only while all wait for something. A reward that has none,
    since others hang in all of them, gets one more. 0: rewards run in the trainer's own process, one after another and
    without time limits, where a debugger can follow them."""
    memory_gib: Annotated[float, Gt(0)] = 4.0
    """A worker that holds more, with the processes that its rewards have started, is killed with all of these, and
    what it did counts as failed."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward as a run knows it: its settings, and what its code declares."""

    name: str
    spec: RewardSpec
    fn: Callable[..., Any] | None
    """What the config names: a function, an object that can be called, or a class of such objects. None in the trainer
    for a reward of the user's, whose code is loaded in workers alone."""
    calling: Calling
    counterfactuals: tuple[Counterfactual, ...]
    has_state: bool
    """Whether the reward is an object, or a class of objects, with a state of its own: it is made once in each of
    the trainer's processes. The state is not part of a checkpoint."""
    is_async: bool
    is_light: bool
    """Whether the reward is called in the trainer's process (`loading.LIGHT`)."""
    is_expensive: bool
    """Whether the reward says that its calls cost money or minutes: then two completions probe it, not hundreds."""
    columns: tuple[str, ...]
    """The dataset columns without which a reward that is called as TRL does would raise."""

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function or object that is called. A class is made into an object here, on first use, with the arguments
        as its knobs."""
        return cast(Any, self.fn)(**self.spec.args) if inspect.isclass(self.fn) else cast(Any, self.fn)

    @property
    def knobs(self) -> Mapping[str, Any]:
        """The arguments of a call; an object has had them when it was made."""
        return {} if inspect.isclass(self.fn) else self.spec.args


Outcome = float | None | RewardFailure
