"""Video-R1's rewards: the published rules worked out by hand, quirks first."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.groups import Rollout, Sample
from rewards.builtin.video_r1 import first_answer, video_r1_accuracy, video_r1_format
from rewards.hostile import make_group

SAMPLE = Sample(
    id="v", question="?", answer="B", task="choice", source="test.jsonl:1", options=("a", "b", "c")
)


def of_type(problem_type: str, answer: str) -> Sample:
    return replace(SAMPLE, answer=answer, columns={"problem_type": problem_type})


def completed(text: str, sample: Sample = SAMPLE) -> Rollout:
    return make_group([text], sample).rollouts[0]


@pytest.mark.parametrize(
    ("problem_type", "right", "given", "value"),
    [
        ("multiple choice", "B", " B\n", 1.0),
        ("multiple choice", "B", "b", 0.0),
        ("multiple choice", "B", "(B)", 0.0),
        ("multiple choice", "B", "B.", 0.0),
        ("numerical", "3", "3", 1.0),
        ("numerical", "3", "3.0", 0.0),  # a point on one side only
        ("numerical", "1000", "1,000", 0.0),  # a comma on one side only
        ("numerical", "1,000", "1000.00", 1.0),  # a mark on both; commas are dropped
        ("numerical", "3.14", "3.141", 1.0),  # 3.14 = 3.14
        ("numerical", "0.125", "0.12", 1.0),  # 0.125 is a tie, rounded to the even 0.12
        ("numerical", "2.675", "2.68", 0.0),  # in binary below 2.675: 2.67
        ("numerical", "1.5", "1,5", 0.0),  # 15
        ("numerical", "3", "three", 0.0),
        ("numerical", "42", "٤٢", 1.0),  # float reads foreign digits
        ("numerical", "10", "1_0", 1.0),  # and underscores
        ("numerical", "5", "nan", 0.0),
        ("OCR", "EXIT to Main Street", "EXIT Main Street", 0.75),  # 1 of 4 words missing
        ("OCR", "EXIT", "exit", 0.0),  # case counts
        ("OCR", "EXIT", "EXIT EXIT EXIT", 0.0),  # 2 errors for 1 word, clipped
        ("OCR", "", "", 1.0),
        ("free-form", "the cat sat", "cat sat", (0.8 + 2 / 3 + 0.8) / 3),  # as in test_answers.py
        ("free-form", "红色", "红色", 0.0),  # no ASCII letters, no score
        ("regression", "10", "9", 1 - (1 + 1e-9) / (10 + 1e-9)),
        ("regression", "10", "30", 0.0),  # an error of 2, clipped
        ("regression", "1,000", "900", 0.9),
        ("regression", "10", "nan", 1.0),  # max(0.0, nan) is 0.0: no number is exactly right
        ("regression", "0", "0", 0.0),  # the guards alone: 1e-9 / 1e-9 = 1
        ("regression", "10", "about 9", 0.0),
        ("regression", "ten", "9", 0.0),
        ("regression", "10", "inf", 0.0),
    ],
)
def test_each_kind_of_answer_is_scored_as_published(
    problem_type: str, right: str, given: str, value: float
) -> None:
    rollout = completed(f"<think>x</think><answer>{given}</answer>", of_type(problem_type, right))
    assert video_r1_accuracy(rollout) == pytest.approx(value, abs=1e-12)


def test_the_task_says_the_kind_where_the_record_does_not() -> None:
    def value(task: Any, answer: str) -> float | None:
        return video_r1_accuracy(completed("<answer>3.0</answer>", replace(SAMPLE, task=task, answer=answer)))

    assert value("choice", "3.0") == 1.0
    assert value("number", "3") == 0.0  # strict about the point
    assert value("regression", "3") == pytest.approx(1.0)
    assert value("ocr", "3") == 0.0
    # rouge-score splits at the point: (3, 0) against (3), 2/3 of single words, no pairs, 2/3 of a subsequence.
    assert value("text", "3") == value("open", "3") == pytest.approx(4 / 9)
    assert value("span", "3.0") is None
    null = replace(SAMPLE, task="choice", answer="3.0", columns={"problem_type": None})
    assert video_r1_accuracy(completed("<answer>3.0</answer>", null)) == 1.0


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"test\.jsonl:1: problem_type 'mcq' is none of multiple choice, "):
        video_r1_accuracy(completed("", of_type("mcq", "B")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>B</answer><answer>A</answer>", 1.0),  # the first counts
        ("<answer>A</answer><answer>B</answer>", 0.0),
        ("<answer>B", 0.0),
        ("B", 0.0),
        ("<answer><answer>B</answer>", 0.0),  # "<answer>B"
    ],
)
def test_the_first_answer_block_counts(text: str, value: float) -> None:
    assert video_r1_accuracy(completed(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>x</think><answer>B</answer>", 1),
        ("<think>x</think> \n <answer>B</answer>", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>x</think><answer>A</answer><answer>B</answer>", 1),  # two answers pass
        (
            "<think>x</think> so <think>y</think><answer>B</answer>",
            1,
        ),  # and text inside what passes for one block
        ("<think>x</think><answer>B</answer>\n", 0),
        (" <think>x</think><answer>B</answer>", 0),
        ("<think>x</think> so <answer>B</answer>", 0),
        ("<think>x</think><answer>", 0),
        ("<think>x</think></answer>", 0),
        ("", 0),
    ],
)
def test_the_format_is_matched_as_published(text: str, value: float) -> None:
    assert video_r1_format(completed(text)) == value


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x", "\x1f", "\u2028"]),
    max_size=12,
)


@given(PIECES)
def test_the_linear_searches_find_what_the_published_patterns_find(pieces: list[str]) -> None:
    text = "".join(pieces)
    published = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
    assert video_r1_format(completed(text)) == float(published is not None)
    answer = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    assert first_answer(text) == (answer[1].strip() if answer else "")
