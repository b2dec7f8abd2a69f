"""The built-in `format`; its table is that of `blocks_in_order` in test_parsing.py."""

from __future__ import annotations

import pytest

from rewards.format import format
from rewards.hostile import COMPLETIONS, make_group, synthetic_samples

SAMPLE = synthetic_samples({})[0]


@pytest.mark.parametrize(
    ("tags", "value"),
    [
        (("think", "keyframes", "answer"), 1),
        (("think", "answer"), 0),
        (("answer", "keyframes", "think"), 0),
        ((), None),
    ],
)
def test_the_format_is_what_this_prompt_asked_for(tags: tuple[str, ...], value: float | None) -> None:
    text = "<think>x</think>\n<keyframes>3</keyframes>\n<answer>B</answer>\n"
    assert format(make_group([text], SAMPLE, tags=tags).rollouts[0]) == value


def test_of_the_hostile_completions_only_the_well_formed_are_well_formed() -> None:
    group = make_group(list(COMPLETIONS.values()), SAMPLE)
    well_formed = {
        label for label, each in zip(COMPLETIONS, group.rollouts, strict=True) if format(each) == 1
    }
    assert well_formed == {
        *("right", "wrong", "all letters", "letter outside", "10,000 digits", "foreign numerals"),
        *("full-width letter", "not a number", "infinity", "outside the clip", "backward span", "emoji"),
    }
