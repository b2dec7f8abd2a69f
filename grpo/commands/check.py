"""Tries a reward out, for its author: `egogrpo check my_rewards.py:fn target_tokens=32`.

The reward is a file's (`my_rewards.py:fn`), a module's (`package.module:fn`) or a built-in
(`accuracy`). Knobs are given as `key=value` and read as in a config; `column.key=value` adds a
dataset column to the samples. Exit status 1 if something is wrong.
"""

from __future__ import annotations

import inspect
import math
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

from omegaconf import OmegaConf

from grpo.commands.arguments import Parser
from grpo.config.load import one_line_errors, read_overrides
from grpo.groups import Group, RewardFailure
from rewards import hostile
from rewards.scoring.calling import failures_in, run
from rewards.scoring.loading import load_reward
from rewards.scoring.runner import RewardSet, load_rewards, probe_groups
from rewards.scoring.specs import Outcome, Reward, RewardSpec, WorkerSettings

LABELS = {text: label for label, text in hostile.COMPLETIONS.items()}
CALLED = {
    "rollout": "with one rollout at a time (@reward)",
    "group": "with the rollouts of a sample (@group_reward)",
    "columns": "as TRL calls rewards (no decorator), with plain texts",
    "messages": "as TRL calls rewards (no decorator), with chat messages",
}

TIME_LIMIT_S = 20.0
MARKS = {True: "ok   ", False: "WRONG", None: "-    "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    check: str
    ok: bool | None
    """None: there was nothing to check."""
    detail: str


def main(argv: Sequence[str] | None = None) -> int:
    """Check the reward that the command line names and print what was found; returns the exit status."""
    parser = Parser(prog="egogrpo check", description=__doc__)
    parser.add_argument(
        "fn", metavar="REWARD", help="my_rewards.py:fn, package.module:fn or a built-in's name"
    )
    parser.add_argument(
        "args", nargs="*", default=[], metavar="key=value", help="knobs; column.key=value for a column"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=TIME_LIMIT_S, help="as in a config; default: %(default)g"
    )
    options = parser.parse_args(argv)
    try:
        args, columns = read_arguments(options.args)
        name = options.fn.rpartition(":")[2]
        spec = RewardSpec(fn=options.fn, args=args, timeout_s=options.timeout_s)
        # At first in a process of its own: the import may end it, and so may a call.
        with closing(load_rewards({name: spec}, WorkerSettings())) as rewards:
            groups = probe_groups(rewards.rewards[0], columns=columns)
            uncontained = containment(rewards, groups)
        reward = load_reward(name, spec)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    findings, tracebacks = ([uncontained], []) if uncontained else check_reward(reward, groups)
    print(f"{options.fn}, called {CALLED[reward.calling]}\n")
    print("\n".join(f"{MARKS[each.ok]}  {each.check:<20}  {each.detail}" for each in findings))
    print("".join(f"\n{text}" for text in tracebacks), end="")
    return 1 if any(finding.ok is False for finding in findings) else 0


def read_arguments(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Knobs and dataset columns from `key=value`, read as a config's overrides are."""
    if bad := [argument for argument in arguments if "=" not in argument]:
        raise ValueError(f"{bad[0]!r} is not key=value")
    columns = [argument for argument in arguments if argument.startswith("column.")]
    knobs = [argument for argument in arguments if argument not in columns]
    return read_pairs(knobs), read_pairs(columns).get("column", {})


def read_pairs(pairs: list[str]) -> dict[str, Any]:
    place = " ".join(pairs)
    with one_line_errors(place):
        read = OmegaConf.to_container(read_overrides(pairs, dict[str, Any], place), resolve=True)
    return cast(dict[str, Any], read)


def containment(rewards: RewardSet, groups: Sequence[Group]) -> Finding | None:
    """What is wrong if the reward hangs or ends its process, as in a run."""
    for group, table in zip(groups, rewards.scoring(in_step=False).tables(groups), strict=True):
        for failure in table.failures:
            if failure.kind != "raised":
                where = describe_rollout(group, failure.rollout_index)
                return Finding("hangs or dies", False, f"{where}: {failure.summary}")
    return None


def check_reward(reward: Reward, groups: Sequence[Group]) -> tuple[list[Finding], list[str]]:
    """The table, and the traceback of the first failure if there is one."""
    # A copy of a class's reward makes another object, which remembers nothing.
    # What is loaded on first use is not what a call takes.
    run(replace(reward), groups[0])
    asked, other, shuffled = (replace(reward) for _ in range(3))
    first, seconds = timed_run(asked, groups)
    second = [run(other, group) for group in groups]
    in_disorder = [run_shuffled(shuffled, group) for group in groups]
    order = "ignores the others" if reward.calling == "rollout" else "follows the order"
    findings = [
        survival(groups, first),
        sameness("deterministic", groups, first, second),
        sameness(order, groups, first, in_disorder, "the same values in another order"),
        value_range(first),
        Finding("time", bool(values_in(first)) or None, time_per_call(seconds)),
    ]
    if reward.has_state:
        memory = sameness("memory", groups, first, [run(asked, group) for group in groups])
        findings = with_memory(findings, memory, is_class=inspect.isclass(reward.fn))
    failures = [failure for outcomes in first for failure in failures_in(outcomes)]
    return findings, [failure.traceback for failure in failures[:1]]


def with_memory(findings: Sequence[Finding], memory: Finding, *, is_class: bool) -> list[Finding]:
    """The findings about an object. One that remembers what it saw may follow the order; made anew, as only a class
    can be, it has to give the same values."""
    if memory.ok is not False:
        return [*findings, replace(memory, detail=f"none: {memory.detail}")]
    survived, deterministic, order, *others = findings
    if deterministic.ok is False and not is_class:
        deterministic = replace(deterministic, ok=None)
    order = replace(order, ok=order.ok or None)
    remembers = f"it remembers what it saw: {memory.detail}"
    return [survived, deterministic, order, *others, Finding("memory", None, remembers)]


def timed_run(reward: Reward, groups: Sequence[Group]) -> tuple[list[list[Outcome]], dict[str, float]]:
    """Outcomes for each group, and how long each call took, by what was scored."""
    outcomes, seconds = [], {}
    for group in groups:
        parts = [replace(group, rollouts=(each,)) for each in group.rollouts]
        column = []
        # Those of an async reward wait at the same time, as in a run.
        for part in parts if reward.calling == "rollout" and not reward.is_async else [group]:
            start_s = time.perf_counter()
            column += run(reward, part)
            seconds[describe(part)] = time.perf_counter() - start_s
        outcomes.append(
            [
                replace(each, rollout_index=g) if isinstance(each, RewardFailure) else each
                for g, each in enumerate(column)
            ]
        )
    return outcomes, seconds


def run_shuffled(reward: Reward, group: Group) -> list[Outcome]:
    """Outcomes of the group in another order, put back into the group's own."""
    order = random.Random(0).sample(range(len(group.rollouts)), len(group.rollouts))
    outcomes = run(reward, replace(group, rollouts=tuple(group.rollouts[g] for g in order)))
    by_rollout = dict(zip(order, outcomes, strict=True))
    return [by_rollout[g] for g in range(len(order))]


def survival(groups: Sequence[Group], outcomes: Sequence[Sequence[Outcome]]) -> Finding:
    """Whether every hostile completion got a finite number or None."""
    failures = [
        f"{describe_rollout(group, failure.rollout_index)}: {failure.summary}"
        for group, column in zip(groups, outcomes, strict=True)
        for failure in failures_in(column)
    ]
    num_calls = sum(len(column) for column in outcomes)
    if not failures:
        return Finding("hostile completions", True, f"{num_calls} rollouts, a finite number or None for each")
    column = re.search(r"KeyError: '(\w+)'", failures[0])
    hint = f"; is that a column of the data? then add column.{column[1]}=VALUE" if column else ""
    failed = f"{len(failures)} of {num_calls} rollouts failed, first {failures[0]}{hint}"
    return Finding("hostile completions", False, failed)


def sameness(
    check: str,
    groups: Sequence[Group],
    first: Sequence[Sequence[Outcome]],
    second: Sequence[Sequence[Outcome]],
    detail: str = "the same values twice",
) -> Finding:
    """Whether every rollout got the same value again."""
    if not values_in(first):
        return Finding(check, None, "no value to compare")
    for group, column, again in zip(groups, first, second, strict=True):
        for index, (a, b) in enumerate(zip(column, again, strict=True)):
            if not same(a, b):
                return Finding(check, False, f"{describe_rollout(group, index)}: {show(a)}, then {show(b)}")
    return Finding(check, True, detail)


def same(a: Outcome, b: Outcome) -> bool:
    """Equal up to the rounding of a sum in another order; one failure is like another."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b)


def value_range(outcomes: Sequence[Sequence[Outcome]]) -> Finding:
    """Smallest and largest value; a reward without a single value checked nothing."""
    flat = [each for column in outcomes for each in column]
    values = values_in(outcomes)
    abstained = f"None for {flat.count(None)} of {len(flat)}"
    if not values:
        hint = (
            "; does it read columns? give them as column.NAME=VALUE" if flat.count(None) == len(flat) else ""
        )
        return Finding("range", False, f"no value at all, {abstained}{hint}")
    note = ", the same everywhere: no signal here" if min(values) == max(values) else ""
    return Finding("range", True, f"{min(values):g} to {max(values):g}{note}; {abstained}")


def values_in(outcomes: Sequence[Sequence[Outcome]]) -> list[float]:
    return [each for column in outcomes for each in column if isinstance(each, float)]


def time_per_call(seconds: Mapping[str, float]) -> str:
    slowest = max(seconds, key=lambda label: seconds[label])
    mean_ms, max_ms = 1000 * sum(seconds.values()) / len(seconds), 1000 * seconds[slowest]
    return f"{mean_ms:.2f} ms a call, at most {max_ms:.2f} ms ({slowest})"


def describe(group: Group) -> str:
    if len(group.rollouts) == 1:
        return describe_rollout(group, 0)
    return f"{len(group.rollouts)} rollouts of {group.prompt.sample.id}"


def describe_rollout(group: Group, index: int) -> str:
    return f"{LABELS[group.rollouts[index].text]!r} of {group.prompt.sample.id}"


def show(outcome: Outcome) -> str:
    return outcome.summary if isinstance(outcome, RewardFailure) else str(outcome)
