"""How answers are compared: against the plain thing where there is one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.builtin.matching import plain_words, read_choice, read_quantity, word_error_rate

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def edit_distance(wanted: list[str], got: list[str]) -> int:
    """By its definition."""
    if not wanted or not got:
        return len(wanted) + len(got)
    replaced = edit_distance(wanted[1:], got[1:]) + (wanted[0] != got[0])
    return min(replaced, edit_distance(wanted[1:], got) + 1, edit_distance(wanted, got[1:]) + 1)


@given(WORDS, WORDS)
def test_the_word_error_rate_is_the_edit_distance_for_each_wanted_word(
    wanted: list[str], got: list[str]
) -> None:
    assert word_error_rate(wanted, got) == min(1.0, edit_distance(wanted, got) / max(1, len(wanted)))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("-1.5", Fraction(-3, 2)),
        ("-1,000.5", Fraction(-2001, 2)),
        ("3 / 4", Fraction(3, 4)),
        ("1e-3", Fraction(1, 1000)),
        (r"\text{42}", Fraction(42)),
        (r"$3\frac{1}{2}$", Fraction(7, 2)),
        (r"\boxed{\frac{1}{3}}", Fraction(1, 3)),
        (r"1{,}000", Fraction(1000)),
        (r"\(1\,000\)", Fraction(1000)),
        (r"\[ 3 \cdot 10^{-2} \]", Fraction(3, 100)),
    ],
)
def test_a_quantity_is_read_exactly(written: str, value: Fraction) -> None:
    quantity = read_quantity(written, latex=True)
    assert quantity is not None and quantity.value == value and not quantity.percent


@pytest.mark.parametrize(
    "written",
    ["", "%", "$", "$$", "1 2", "1.2.3", "3-2", "3,4", "(1,2)", "1/0", "$3$ $4$", "x", "1e9999", "inf", "٤٢"]
    + [r"1 2 \pi", r"1.2.3 \pi", r"\pi r", r"\text{42 cups}", r"\sqrt{-1}", r"\input{x}", r"\frac{1}{0}"]
    + [r"9^{9^{9}}", r"9^{999}", r"(9^{99})^{99}", r"(((((\pi)))))", "(" * 100, r"\pi" * 1000, "9" * 10_000],
)
def test_what_is_no_single_number_is_not_worked_out(written: str) -> None:
    assert read_quantity(written, latex=True) is None


def test_a_text_keeps_some_words_if_it_has_any() -> None:
    assert plain_words("?! (.)") == []
    assert plain_words("The a") == ["the", "a"]  # only articles: they are what was said
    assert plain_words("A: “the cup”, (A)") == ["a", "cup", "a"]  # letters of options


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("dark red", "C"),
        ("red", "B"),
        ("the red", "B"),
        ("option c", "C"),
        ("5 cups", "D"),
        ("five CUPS", "D"),
    ]
    + [("the first choice", "A"), ("the sixth choice", None), ("dark", None), ("F", None), ("an hour", "E")],
)
def test_an_option_goes_by_several_names(content: str, letter: str | None) -> None:
    assert read_choice(content, ("blue", "red", "dark red", "5 cups", "the hour")) == letter


@pytest.mark.parametrize(
    ("content", "options", "letter"),
    [
        ("$5", ("5", "$5"), "B"),  # markup, or a price: what is written as an option is that option
        ("$5$", ("5", "$6"), "A"),
        ("5'", ("5'", '5"'), "A"),
        ("The first one", ("second one", "first one"), "B"),  # places in the clip, not in the list
        ("the second one", ("first one", "third one"), None),
        ("the first option", ("the second cup", "a knife"), None),
        ("OptionB", ("a cup", "a knife"), None),
        ("Answer:B", ("a cup", "a knife"), "B"),
        ("option (b)", ("a cup", "a knife"), "B"),
        ("the answer is **B**", ("a cup", "a knife"), "B"),
        ("answerable", ("able", "a knife"), None),
    ],
)
def test_an_answer_that_could_be_another_option_is_not_guessed(
    content: str, options: tuple[str, ...], letter: str | None
) -> None:
    assert read_choice(content, options) == letter


def test_a_text_that_two_options_share_names_neither() -> None:
    assert read_choice("hour", ("an hour", "the hour")) is None
    assert read_choice("the hour", ("an hour", "the hour")) == "B"


def test_without_options_any_letter_counts() -> None:
    assert read_choice("Option Z", ()) == "Z"
    assert read_choice("the second option", ()) is None
