"""What a step's figures say of sampling that goes wrong, in words: a table of rules that whoever shows a run reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

Figures = Mapping[str, float]

MOST = 0.5
"""A share that counts as most."""

REWARD = "accuracy"
SUCCESS = f"rewards/{REWARD}/mean"
"""The figure that a question's chance of a right answer is taken from."""


class Rule(NamedTuple):
    """A rule over a step's figures."""

    name: str
    needs: tuple[str, ...]
    """The figures that it is about; without one of them it does not hold."""
    holds: Callable[[Figures, int], bool]
    """Returns whether it holds, from the figures and the number of completions of a group."""
    sentence: Callable[[Figures, int], str]


def flat_share(success: float, group_size: int) -> float:
    """Return the share of groups whose answers are all right or all wrong, if each is right with the same chance."""
    return success**group_size + (1 - success) ** group_size


def enough_completions(success: float) -> int:
    """Return the smallest group of which fewer than half are flat by chance; the chance is neither 0 nor 1."""
    return next(size for size in range(2, 10_000) if flat_share(success, size) < MOST or size == 9_999)


def _groups_too_small(figures: Figures, group_size: int) -> bool:
    success = figures[SUCCESS]
    return 0 < success < 1 and figures["groups/no_signal"] >= MOST <= flat_share(success, group_size)


RULES = (
    Rule(
        "all cut",
        ("completion/stopped", "completion/length"),
        lambda figures, _: figures["completion/stopped"] == 0,
        lambda figures, _: (
            "all completions were cut at rollout.max_new_tokens, none ended by itself: "
            f"{figures['completion/length']:.0f} tokens are too few, or the model does not end its turn (rollout.stop)"
        ),
    ),
    Rule(
        "all empty",
        ("completion/empty",),
        lambda figures, _: figures["completion/empty"] == 1,
        lambda *_: (
            "all completions are empty: the model ends its turn at once; look at prompt.template and model.path"
        ),
    ),
    Rule(
        "all equal",
        ("groups/all_equal",),
        lambda figures, _: figures["groups/all_equal"] == 1,
        lambda _, group_size: (
            f"in every group all {group_size} completions are the same: nothing can be learned from them; "
            "raise rollout.temperature"
        ),
    ),
    Rule(
        "rows too large",
        ("optim/split_rows",),
        lambda *_: True,
        lambda figures, _: (
            f"the memory did not suffice for {figures['optim/split_rows']:.0f} passes of rows, which were made in two "
            "halves each, and other passes twice; lower optim.tokens_per_row"
        ),
    ),
    Rule(
        "groups too small",
        (SUCCESS, "groups/no_signal"),
        _groups_too_small,
        lambda figures, group_size: (
            f"{figures['groups/no_signal']:.0%} of the groups are flat, and with {figures[SUCCESS]:.0%} right answers "
            f"{flat_share(figures[SUCCESS], group_size):.0%} of groups of {group_size} have to be: with a "
            f"rollout.group_size of {enough_completions(figures[SUCCESS])} most would have a signal, or with "
            "other questions (dynamic_sampling)"
        ),
    ),
)


def warnings_of(figures: Figures, group_size: int) -> dict[str, str]:
    """Return the sentences of the rules that hold in a step, by the rules' names."""
    return {
        rule.name: rule.sentence(figures, group_size)
        for rule in RULES
        if figures.keys() >= set(rule.needs) and rule.holds(figures, group_size)
    }
