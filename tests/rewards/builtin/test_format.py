"""Rewards for the form; the table of `format` is that of `blocks_in_order` in test_parsing.py."""

from __future__ import annotations

import pytest

from rewards.builtin.format import format, format_lenient, tag_order, tags_once
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
        *("long reasoning", "span", "order", "right to left"),
    }


TAGS = ("think", "keyframes", "answer")
WHOLE = "<think>x</think><keyframes>3</keyframes><answer>B</answer>"


@pytest.mark.parametrize(
    ("text", "tags", "lenient", "order", "once"),
    [
        (WHOLE, TAGS, 1, 1, 1),
        ("Well. " + WHOLE.replace("</think>", "</think> so ") + " Done.", TAGS, 1, 1, 1),
        # Of the pairs (think, keyframes), (think, answer), (keyframes, answer), the last is swapped.
        ("<think>x</think><answer>B</answer><keyframes>3</keyframes>", TAGS, 0, 2 / 3, 1),
        ("<answer>B</answer><keyframes>3</keyframes><think>x</think>", TAGS, 0, 0, 1),
        ("<think>x</think><answer>B</answer>", TAGS, 0, 1 / 3, 2 / 3),  # only (think, answer)
        (WHOLE + "<answer>B</answer>", TAGS, 0, 1, 2 / 3),  # two answers
        (WHOLE.replace("</think>", ""), TAGS, 0, 1, 2 / 3),  # think never closed, still opened first
        (
            "<think>x<keyframes>3</keyframes></think><answer>B</answer>",
            TAGS,
            0,
            1,
            2 / 3,
        ),  # think holds a tag
        (WHOLE.replace(">B<", "> <"), TAGS, 0, 1, 1),  # blank
        (WHOLE.replace("<answer>", "<Answer>"), TAGS, 0, 1 / 3, 2 / 3),  # misspelt
        ("", TAGS, 0, 0, 0),
        (WHOLE, ("answer",), 1, None, 1),
        (WHOLE, (), None, None, None),
    ],
)
def test_a_form_that_is_only_nearly_right_gets_a_part(
    text: str, tags: tuple[str, ...], lenient: float | None, order: float | None, once: float | None
) -> None:
    rollout = make_group([text], SAMPLE, tags=tags).rollouts[0]
    assert (format_lenient(rollout), tag_order(rollout), tags_once(rollout)) == (lenient, order, once)


def test_what_is_strictly_well_formed_is_leniently_so() -> None:
    for rollout in make_group(list(COMPLETIONS.values()), SAMPLE).rollouts:
        if format(rollout):
            assert format_lenient(rollout) == tag_order(rollout) == tags_once(rollout) == 1
