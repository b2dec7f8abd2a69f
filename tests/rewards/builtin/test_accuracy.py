"""The built-in `accuracy`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo.groups import Rollout, Sample, Task
from rewards.builtin.accuracy import accuracy
from rewards.hostile import COMPLETIONS, make_group, synthetic_samples

CHOICE = Sample(
    id="c", question="?", answer="B", task="choice", options=("blue", "red", "green"), source="test.jsonl:1"
)


def rollout(text: str, sample: Sample = CHOICE) -> Rollout:
    return make_group([text], sample).rollouts[0]


def of_task(task: Task, answer: str) -> Sample:
    return replace(CHOICE, task=task, answer=answer, options=())


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("B", 1),
        ("(b)", 1),
        ("B. red", 1),
        ("red", 1),
        ("A", 0),
        ("D", 0),
        ("A or B", 0),
        ("B. blue", 0),
        ("", 0),
        (" ", 0),
    ],
)
def test_a_choice_is_right_if_it_names_the_letter(answer: str, value: float) -> None:
    assert accuracy(rollout(f"<think>x</think><answer>{answer}</answer>")) == value


@pytest.mark.parametrize(
    "text",
    ["", "B", "<answer>B", "<answer>B</answer><answer>B</answer>", "<answer>A</answer><answer>B</answer>"]
    + ["<Answer>B</Answer>", "I put B in <answer> tags: <answer>B</answer>"],
)
def test_without_exactly_one_answer_block_nothing_is_right(text: str) -> None:
    assert accuracy(rollout(text)) == 0


def test_the_letters_case_in_the_thinking_does_not_matter() -> None:
    assert accuracy(rollout("<think>A? No. (C)? No.</think><answer>B</answer>")) == 1


@pytest.mark.parametrize(
    ("answer", "given", "value"),
    [("42", "42.0", 1), ("42", "+42", 1), ("0.1", ".10", 1), ("42", "43", 0), ("42", "٤٢", 0), ("42", "42 cups", 0)]
    + [("0.3", "0.30000000000000000001", 0), ("7", "9" * 10_000, 0), ("7", "nan", 0)]
    + [("1,000", "1,000", 1), ("1,000", "1000", 0)],
)  # fmt: skip
def test_numbers_are_compared_exactly(answer: str, given: str, value: float) -> None:
    assert accuracy(rollout(f"<answer>{given}</answer>", of_task("number", answer))) == value


@pytest.mark.parametrize(("given", "value"), [("9.7", 1), ("10.3", 1), ("10.31", 0), ("9.69", 0)])
def test_a_number_may_differ_by_the_tolerance(given: str, value: float) -> None:
    # 0.3 is meant as it was written: the binary fraction next to it is less.
    for task in ("number", "regression"):
        assert accuracy(rollout(f"<answer>{given}</answer>", of_task(task, "10")), tolerance=0.3) == value


@pytest.mark.parametrize(
    ("given", "value"), [("A red  cup", 1), ("\na red cup ", 1), ("a red cup.", 0), ("red cup", 0), ("", 0)]
)
def test_text_is_compared_without_case_and_white_space(given: str, value: float) -> None:
    for task in ("text", "ocr", "open", "span"):
        assert accuracy(rollout(f"<answer>{given}</answer>", of_task(task, "a red cup"))) == value


def test_an_extra_answer_of_the_record_is_right_too() -> None:
    sample = replace(of_task("open", "a red cup"), columns={"extra_answers": ["mug", "A beaker"]})
    values = [accuracy(rollout(f"<answer>{given}</answer>", sample)) for given in ("mug", "a  beaker", "cup")]
    assert values == [1, 1, 0]


def test_a_letter_is_not_an_answer_to_an_open_question() -> None:
    assert accuracy(rollout("<answer>(B)</answer>", of_task("open", "B"))) == 0


def test_a_blank_answer_is_never_right() -> None:
    assert accuracy(rollout("<answer> </answer>", of_task("text", ""))) == 0


def test_of_the_hostile_completions_only_the_right_ones_are_right() -> None:
    sample = synthetic_samples({})[0]
    right = {label for label, text in COMPLETIONS.items() if accuracy(rollout(text, sample)) == 1}
    assert right == {
        "right",
        "right, no moments",
        "long reasoning",
        "100,000 characters",
        "no think",
        "full-width letter",
        "reversed",
        "every moment",
        "code",
    }
