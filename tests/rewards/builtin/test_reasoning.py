"""Rewards for the reasoning, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo.groups import Rollout, Sample
from rewards.builtin.reasoning import concluded_option, consistency, language, repetition
from rewards.hostile import make_group, synthetic_samples

CHOICE = synthetic_samples({})[0]
OPTIONS = ("blue", "red", "dark red", "no", "3")
ENGLISH = (
    "The hand opens the drawer, takes out a long knife and puts it on the table next to the cutting board. "
)
GERMAN = "Die Hand öffnet die Schublade, nimmt ein langes Messer heraus und legt es auf den Tisch neben das Brett. "
CHINESE = "首先，我看到手打开了抽屉，然后拿出一把长长的刀，并把它放在桌子上，旁边是切菜板，所以答案应该是第二个选项。"


def thinking(text: str, answer: str = "B", sample: Sample = CHOICE) -> Rollout:
    return make_group([f"<think>{text}</think><answer>{answer}</answer>"], sample).rollouts[0]


@pytest.mark.parametrize(
    ("token_ids", "ngram_tokens", "value"),
    [
        (range(100), 3, 0.0),
        ([1, 2, 1, 2, 1, 2], 2, -0.6),  # 5 pairs, 2 distinct: 2/5 - 1
        ([7] * 11, 2, -0.9),  # 10 pairs, 1 distinct
        ([7] * 11, 1, -10 / 11),  # 11 tokens, 1 distinct
        ([1, 2, 3, 1, 2, 3], 4, 0.0),  # 1231, 2312, 3123: all distinct
        ([7] * 5, 6, 0.0),  # shorter than one
        ([], 2, 0.0),
    ],
)
def test_repetition_is_the_share_of_n_grams_that_come_back(
    token_ids: list[int], ngram_tokens: int, value: float
) -> None:
    rollout = replace(thinking("x"), token_ids=tuple(token_ids))
    assert repetition(rollout, ngram_tokens=ngram_tokens) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        (ENGLISH, "en", 1.0),
        (ENGLISH, "de", 0.0),
        (GERMAN * 3, "de", 1.0),
        (CHINESE, "zh", 1.0),
        (CHINESE, "en", 0.0),
        ("Red, I think.", "en", None),  # too short to tell
        ("3.5 12.0 " * 100, "en", None),  # no letters
        ("y" * 1000, "en", None),  # letters of no language
    ],
)
def test_the_language_of_the_reasoning_is_told(text: str, wanted: str, value: float | None) -> None:
    assert language(thinking(text), language=wanted) == value


def test_a_reasoning_in_two_languages_is_in_part_in_each() -> None:
    # Half of the characters each; the piece where they meet may go to either.
    value = language(thinking(ENGLISH * 6 + GERMAN * 6), language="en")
    assert value is not None and 0.4 < value < 0.6


def test_without_a_think_block_only_a_prompt_that_asks_for_none_has_a_language() -> None:
    group = make_group([ENGLISH], CHOICE)
    assert language(group.rollouts[0]) is None
    assert language(make_group([ENGLISH], CHOICE, tags=()).rollouts[0]) == 1.0
    with pytest.raises(ValueError, match="language: 'english' is none of .* en, "):
        language(group.rollouts[0], language="english")


@pytest.mark.parametrize(
    ("reasoning", "letter"),
    [
        ("It is red.", "B"),
        ("Red? No. Blue? Yes, blue it is", "A"),
        ("The hand takes the dark red cup.", "C"),  # not option B, which is inside it
        ("Maybe (a). In the end (d).", "D"),
        ("A hand takes it. I see B", "B"),  # the bare A and I are words
        ("So the answer is A.", "A"),
        ("A or C could fit, but the answer is B.", "B"),
        ("the correct option is clearly the red one", "B"),
        ("ANSWER: E", "E"),
        ("The answer is 3.", "E"),
        ("It takes 3 seconds.", None),  # a digit by itself names no option
        ("So the answer is B, not A.", "B"),
        ("The answer is not B.", None),
        ("It isn't blue.", None),
        ("It would be wrong to say that the answer is B.", None),
        ("A hand takes it.", None),
        ("B fits. Option A is wrong.", None),  # would need to be understood
        ("The answer is B. Wait, that is wrong.", None),
        ("At first I took option A. There is no doubt that the answer is B.", None),
        ("It is red. The answer is not blue.", None),
        ("It is red. The answer is no.", "D"),
        ("It is red. The answer is no longer red.", None),
        ("It is red. The answer is no, not red.", "D"),
        ("C is wrong, so B", None),  # would need to be understood
        ("I think (a) or (b).", None),
        ("B. Then again (a) or (b).", None),  # ends in doubt
        ("It was the cup.", None),
        ("The İ RED ſ", "B"),
        ("", None),
    ],
)
def test_the_conclusion_is_the_last_option_named_without_doubt(reasoning: str, letter: str | None) -> None:
    assert concluded_option(reasoning, OPTIONS) == letter


def test_options_of_the_same_text_go_by_letter_only() -> None:
    assert concluded_option("It is red.", ("red", "Red")) is None
    assert concluded_option("It is (b).", ("red", "Red")) == "B"
    assert concluded_option("It is Z.", ()) == "Z"
    assert concluded_option("It is the red cup.", ("red", "red cup")) == "B"
    assert concluded_option("B is what I see.", ("red",)) is None


@pytest.mark.parametrize(
    ("options", "reasoning", "letter"),
    [
        (("yes", "no"), "The answer is yes.", "A"),
        (("yes", "no"), "The answer is no.", "B"),
        (("yes", "no"), "At first glance the answer is yes. But the answer is no.", "B"),
        (("yes", "no"), "The answer is no, not yes.", "B"),
        (("yes", "no"), "The answer is yes, not no.", "A"),
        (("yes", "no"), "Is it there? No.", None),
        (("true", "false"), "The statement is false.", "B"),
        (("true", "false"), "It is false that the answer is true.", None),
        (("not visible", "red"), "I see (B) first. The answer is not visible.", "A"),
        (("visible", "not visible"), "In the end it is not visible.", "B"),
        (("visible", "not visible"), "In the end it is not very visible.", None),
    ],
)
def test_an_option_that_negates_is_named_like_any_other(
    options: tuple[str, ...], reasoning: str, letter: str | None
) -> None:
    assert concluded_option(reasoning, options) == letter


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("It is red.", "B", 1),
        ("It is red.", "(B) red", 1),
        ("It is red.", "A", 0),
        ("It is the green one, so C.", "C", 1),  # a wrong answer can be consistent
        ("It is red or blue.", "B", None),
        ("It is red.", "A or B", None),
        ("", "B", None),
    ],
)
def test_reasoning_and_answer_are_compared(text: str, answer: str, value: float | None) -> None:
    assert consistency(thinking(text, answer)) == value


def test_consistency_is_for_choices() -> None:
    assert consistency(thinking("It is B.", sample=replace(CHOICE, task="text"))) is None
    assert consistency(make_group(["It is B. <answer>B</answer>"], CHOICE).rollouts[0]) is None


def test_an_n_gram_has_a_token() -> None:
    with pytest.raises(ValueError, match="ngram_tokens=0"):
        repetition(thinking("x"), ngram_tokens=0)
