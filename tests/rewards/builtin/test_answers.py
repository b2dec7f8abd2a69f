"""Rewards for the answer, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from grpo.groups import Rollout, Sample, Task
from rewards.builtin.answers import (
    choice,
    exact_set,
    graded_accuracy,
    number,
    ocr,
    regression,
    relative_accuracy,
    rouge,
    text,
)
from rewards.hostile import make_group

CHOICE = Sample(
    id="s",
    question="?",
    answer="B",
    task="choice",
    source="test.jsonl:1",
    options=("blue", "a red cup", "green"),
)


def of_task(task: Task, answer: str, **columns: Any) -> Sample:
    return replace(CHOICE, task=task, answer=answer, options=(), columns=columns)


def answered(content: str, sample: Sample) -> Rollout:
    return make_group([f"<think>x</think><answer>{content}</answer>"], sample).rollouts[0]


@pytest.mark.parametrize(
    ("given", "value"),
    [("B", 1), ("(b)", 1), ("B. a red cup", 1), ("a red cup", 1), ("Red cup.", 1), ("**B**", 1), ("Option B", 1)]
    + [("The answer is (B).", 1), (r"\boxed{B}", 1), ("the second option", 1), ("answer: the red cup", 1)]
    + [("A", 0), ("A or B", 0), ("Option A, not B", 0), ("B. blue", 0), ("red", 0), ("option", 0), ("second", 0)]
    + [("the fifth option", 0), ("D", 0), ("", 0)],
)  # fmt: skip
def test_a_choice_is_read_whatever_its_wording_and_never_guessed(given: str, value: float) -> None:
    assert choice(answered(given, CHOICE)) == value


@pytest.mark.parametrize(
    ("right", "given", "knobs", "value"),
    [
        ("42", "42.0", {}, 1),
        ("42", "43", {}, 0),
        ("42", "43", {"abs_tolerance": 1}, 1),  # |43 - 42| = 1
        ("200", "210", {"rel_tolerance": 0.05}, 1),  # 10 <= 0.05 * 200
        ("210", "200", {"rel_tolerance": 0.04}, 0),  # 10 > 0.04 * 210 = 8.4
        ("10", "10.3", {"abs_tolerance": 0.3}, 1),  # in binary, 0.3 is less than 0.3
        ("1000", "1,000", {}, 1),
        ("1,234,567.5", "1234567.5", {}, 1),
        ("1000", "1,00", {}, 0),  # no group of three digits
        ("0.75", "3/4", {}, 1),
        ("1500", "1.5e3", {}, 1),
        ("0.75", r"\frac{3}{4}", {}, 1),
        ("0.75", r"$\frac{3}{4}$", {"latex": False}, 0),
        ("1500", r"1.5 \times 10^{3}", {}, 1),
        ("42", r"\boxed{42}", {}, 1),
        (r"2\sqrt{2}", r"\sqrt{8}", {}, 1),
        ("3.14", r"\pi", {"abs_tolerance": 0.01}, 1),  # 0.0016 <= 0.01
        ("50%", "50", {}, 1),  # the sign left out
        ("50%", "0.5", {}, 1),  # worked out
        ("0.5", r"50\%", {}, 1),
        ("50%", "45%", {"abs_tolerance": 1}, 0),  # percent points, not 0.05
        ("50", "0.5", {}, 0),
        ("50%", "0.5%", {}, 0),
        ("1", "3-2", {}, 0),  # a span, not a difference
        ("42", "42 cups", {}, 0),
        ("42", "41 or 42", {}, 0),
        ("42", "٤٢", {}, 0),
        ("42", "nan", {"rel_tolerance": 9}, 0),
        ("42", r"\frac{1}{0}", {}, 0),
        ("42", "", {}, 0),
        ("forty-two", "42", {}, None),
    ],
)
def test_a_number_may_be_written_in_several_ways(
    right: str, given: str, knobs: dict[str, Any], value: float | None
) -> None:
    assert number(answered(given, of_task("number", right)), **knobs) == value
    assert number(answered(given, of_task("regression", right)), **knobs) == value


@pytest.mark.parametrize(
    ("given", "value"),
    [("a red cup", 1), ("The RED cup.", 1), ("“red  cup”", 1), ("ｒｅｄ cup", 1), ("cup red", 0), ("red cups", 0)]
    + [("the", 0), ("", 0), ("mug", 1), ("red cup, 2 handles", 0)],
)  # fmt: skip
def test_a_text_has_the_words_of_an_accepted_answer(given: str, value: float) -> None:
    for task in ("text", "open", "ocr"):
        assert text(answered(given, of_task(task, "a red cup", extra_answers=["mug"]))) == value


def test_number_words_and_digits_are_the_same_text_but_signs_and_points_stay() -> None:
    assert text(answered("2 cups", of_task("text", "Two cups"))) == 1
    assert text(answered("5", of_task("text", "-5"))) == text(answered("5", of_task("text", ".5"))) == 0


@pytest.mark.parametrize(
    ("given", "knobs", "value"),
    [
        ("EXIT to Main Street", {}, 1.0),
        ("exit to main street", {}, 1.0),
        ("exit to main street", {"case_sensitive": True}, 0.25),  # 3 of 4 words replaced
        ("exit main street", {}, 0.75),  # 1 of 4 missing
        ("exit to the main street", {}, 0.75),  # 1 too many
        ("main street exit to", {}, 0.0),  # two in front, two missing: 4 of 4
        ("one two three four five six seven", {}, 0.0),  # 7 errors for 4 words, clipped
        ("", {}, 0.0),
        ("way out", {}, 1.0),  # an extra answer
    ],
)
def test_ocr_is_one_less_the_word_error_rate(given: str, knobs: dict[str, Any], value: float) -> None:
    sample = of_task("ocr", "EXIT to Main Street", extra_answers=["way out"])
    assert ocr(answered(given, sample), **knobs) == value


@pytest.mark.parametrize(
    ("right", "given", "value"),
    [
        ("the cat sat", "the cat sat", 1.0),
        # ROUGE-1: 2 of 3 and 2 of 2, F1 = 0.8. ROUGE-2: 1 of 2 and 1 of 1, F1 = 2/3. ROUGE-L: as ROUGE-1.
        ("the cat sat", "cat sat", (0.8 + 2 / 3 + 0.8) / 3),
        # The same words: ROUGE-1 is 1. No pair and a common subsequence of 1 word in 2: 0 and 0.5.
        ("red cup", "cup red", (1 + 0 + 0.5) / 3),
        ("it falls", "it falling", 1.0),  # stemmed
        ("cup", "cup", 2 / 3),  # no pairs in one word
        ("the cat sat", "dogs bark", 0.0),
        ("the cat sat", "", 0.0),
        ("红色的杯子", "红色的杯子", None),
    ],
)
def test_rouge_is_the_mean_of_three(right: str, given: str, value: float | None) -> None:
    for task in ("open", "text"):
        assert rouge(answered(given, of_task(task, right))) == (
            value if value is None else pytest.approx(value)
        )


def test_rouge_takes_the_best_of_the_accepted_answers() -> None:
    assert rouge(answered("it breaks", of_task("open", "the cat", extra_answers=["it breaks"]))) == 1.0


@pytest.mark.parametrize(
    ("given", "knobs", "value"),
    [
        ("cup, knife, the fork", {}, 1),
        ("Fork; cup;\nknife.", {}, 1),
        ("cup, cup, knife, fork", {}, 1),  # a set
        ("cup, knife", {}, 0),
        ("cup, knife", {"partial": True}, 0.8),  # 2 * 2 / (3 + 2)
        ("cup, spoon, plate", {"partial": True}, 1 / 3),  # 2 * 1 / (3 + 3)
        ("cup knife fork", {"partial": True}, 0),
        (",;, ", {"partial": True}, 0),
        ("", {}, 0),
    ],
)
def test_sets_are_compared_item_by_item(given: str, knobs: dict[str, Any], value: float) -> None:
    sample = of_task("text", "a cup, a knife, a fork")
    assert exact_set(answered(given, sample), **knobs) == pytest.approx(value)


@pytest.mark.parametrize(
    ("right", "given", "graded", "mean_accuracy"),
    [
        ("10", "10", 1.0, 1.0),
        ("10", "9", 0.9, 0.8),  # 0.1 < 0.5, 0.45, ... 0.15, but not < 0.1 nor 0.05: 8 of 10
        ("10", "9.01", 0.901, 0.9),  # 0.099 < 0.1 too
        ("10", "15", 0.5, 0.0),  # 0.5 is not < 0.5
        ("10", "14.9", 0.51, 0.1),  # 0.49 < 0.5 only
        ("10", "30", 0.0, 0.0),  # 2, clipped
        ("-10", "-9", 0.9, 0.8),
        ("-10", "10", 0.0, 0.0),
        ("0", "0.0", 1.0, 1.0),
        ("0", "0.001", 0.0, 0.0),
        ("1,000", "900", 0.9, 0.8),
        ("10", "about 10", 0.0, 0.0),
        ("10", "nan", 0.0, 0.0),
        ("10", "", 0.0, 0.0),
        ("ten", "10", None, None),
    ],
)
def test_regression_is_graded_by_the_relative_error(
    right: str, given: str, graded: float | None, mean_accuracy: float | None
) -> None:
    rollout = answered(given, of_task("regression", right))
    assert regression(rollout) == graded
    assert relative_accuracy(rollout) == mean_accuracy


def test_each_reward_abstains_on_other_tasks() -> None:
    applies = {
        choice: {"choice"},
        number: {"number", "regression"},
        text: {"text", "ocr", "open"},
        ocr: {"ocr"},
        rouge: {"open", "text"},
        exact_set: {"text", "open"},
        regression: {"regression"},
        relative_accuracy: {"regression"},
    }
    tasks: tuple[Task, ...] = ("choice", "number", "text", "ocr", "regression", "span", "open")
    for fn, wanted in applies.items():
        assert {task for task in tasks if fn(answered("7", of_task(task, "7"))) is not None} == wanted


@pytest.mark.parametrize(
    ("right", "given"),
    [("50%", "0.5"), ("0.5", "50%"), ("50", "50%"), ("0.5", r"\frac{1}{2}"), ("1,000", "1e3")],
)
def test_regression_reads_numbers_as_number_does(right: str, given: str) -> None:
    rollout = answered(given, of_task("regression", right))
    assert number(rollout) == regression(rollout) == relative_accuracy(rollout) == 1.0


def test_graded_accuracy_takes_each_sample_by_its_own_task() -> None:
    given: list[tuple[Task, str, str, float]] = [
        ("choice", "B", "B", 1.0),
        ("number", "42", "43", 0.0),
        ("text", "a cup", "a  CUP", 1.0),
        ("ocr", "way out", "way in", 0.5),
        ("regression", "10", "9", 0.9),
        ("open", "red cup", "cup red", 0.5),
        ("span", "2.0-4.0", "3.0-5.0", 1 / 3),  # one second in both, three in either
    ]
    values = [graded_accuracy(answered(answer, of_task(task, right))) for task, right, answer, _ in given]
    assert values == pytest.approx([value for *_, value in given])


def test_extra_answers_are_a_list_or_named_as_wrong() -> None:
    assert text(answered("a", of_task("text", "b", extra_answers=None))) == 0
    with pytest.raises(ValueError, match=r"test\.jsonl:1: extra_answers is no list of texts but 'mug'"):
        text(answered("a", of_task("text", "b", extra_answers="mug")))


def test_without_exactly_one_answer_block_nothing_is_right() -> None:
    for given in ("B", "<answer>B", "<answer>B</answer><answer>B</answer>", "<answer>\u200b</answer>"):
        assert choice(make_group([given], CHOICE).rollouts[0]) == 0
