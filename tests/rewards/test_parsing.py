"""Reading completions: what is accepted, what is ambiguous, and that no text is too long to read."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.parsing import (
    TAGS,
    blocks_in_order,
    is_blank,
    normalise,
    only_block,
    read_letter,
    read_moments,
    read_number,
)

OPTIONS = ("a cup", "a knife", "a plate", "a phone")
# Texts made of what the parser looks at, so that chance finds its edges.
SNIPPETS = [
    "<think>",
    "</think>",
    "<keyframes>",
    "</keyframes>",
    "<answer>",
    "</answer>",
    "<Answer>",
    "<",
    ">",
    "/",
]
SNIPPETS += [
    "answer",
    "B",
    "(",
    ")",
    ".",
    ":",
    "3",
    "-",
    ",",
    " ",
    "\n",
    "٣",
    "\u200b",
    "a knife",
    "</ answer>",
]
texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=40).map("".join)


@pytest.mark.parametrize(
    "text", ["", " \n", "\u200b", "\ufe0f", "\u3164", "\u2800", "\u115f", "\u0301", " \u0301\u2800", "\uffa0"]
)
def test_what_leaves_no_ink_is_blank(text: str) -> None:
    assert is_blank(text) and not is_blank(f"{text}a") and not is_blank(f"{text}क\u093f")


contents = st.text(alphabet="abc 0123.,-\n", min_size=1, max_size=20).filter(lambda text: not is_blank(text))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>B</answer>", "B"),
        ("so it is\n<answer>\nB </answer>.", "\nB "),
        ("<think>x<answer>B</answer></think>", "B"),
        ("a < b <b>bold</b> <answer>x <i>y</i></answer>", "x <i>y</i>"),
        ("", None),
        ("B", None),
        ("<answer>B", None),
        ("B</answer>", None),
        ("</answer>B<answer>", None),
        ("<answer>A</answer><answer>B</answer>", None),
        ("<answer>B</answer> or <answer>", None),
        ("I write <answer> and then <answer>B</answer>", None),
        ("<answer><answer>B</answer></answer>", None),
        ("<answer><think>x</think>B</answer>", None),
        ("<Answer>B</Answer>", None),
        ("<answer >B</answer>", None),
        ("<answer lang='en'>B</answer>", None),
        ("<answer>B</answer><ANSWER>A</ANSWER>", None),
        ("<answers>B</answers>", None),
        ("&lt;answer&gt;B&lt;/answer&gt;", None),
    ],
)
def test_a_block_is_read_only_if_it_is_the_one_of_its_tag(text: str, content: str | None) -> None:
    assert only_block(text, "answer") == content


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("<think>x</think><answer>B</answer>", ("x", "B")),
        (" \n<think> x </think>\n\n<answer>B</answer>\n", (" x ", "B")),
        ("<think>if a < b: <b>c</b></think><answer>B</answer>", ("if a < b: <b>c</b>", "B")),
        ("<answer>B</answer><think>x</think>", None),
        ("<think>x</think>", None),
        ("<think>x</think><answer>B</answer><answer>B</answer>", None),
        ("<think>x</think>so<answer>B</answer>", None),
        ("<think>x</think><answer>B</answer>.", None),
        ("Sure! <think>x</think><answer>B</answer>", None),
        ("<think>x<answer>B</answer></think>", None),
        ("<think>x</think><keyframes>3</keyframes><answer>B</answer>", None),
        ("<think>the <answer> tag</think><answer>B</answer>", None),
        ("<think>the < Answer> tag</think><answer>B</answer>", None),
        ("<think> </think><answer>B</answer>", None),
        ("<think>x</think><answer>\u200b</answer>", None),
        ("<think>x</think><answer>B", None),
        ("", None),
    ],
)
def test_the_blocks_are_read_only_if_the_text_is_nothing_else(
    text: str, blocks: tuple[str, ...] | None
) -> None:
    assert blocks_in_order(text, ("think", "answer")) == blocks


def test_the_tags_are_the_prompts_own() -> None:
    assert blocks_in_order("<region>7</region><answer>B</answer>", ("region", "answer")) == ("7", "B")
    assert blocks_in_order("<region>7</region><answer>B</answer>", ("answer",)) is None


@pytest.mark.parametrize(
    "content", ["B", "b", "(B)", "(b)", "B.", "B)", "B:", "(B).", " B\n", "[B]", "Ｂ", "B: a knife"]
    + ["B) A  Knife", "(B) a knife", "B. a knife", "a knife", "A KNIFE", " a\n knife "],
)  # fmt: skip
def test_one_letter_or_its_options_text_is_read_as_that_letter(content: str) -> None:
    assert read_letter(content, OPTIONS) == "B"


@pytest.mark.parametrize(
    "content",
    ["", " ", "E", "Z.", "AB", "A or B", "A, B", "A/B", "A. B.", "B: a cup", "B: or C", "B because"]
    + ["B a knife", "knife", "a knife or a cup", "((B))", "(B", "[[B]]", "2", "Ⓑ", "Б", "\u212a", "not B", "B?"]
    + ["option B", "B\x00"],
)  # fmt: skip
def test_no_letter_is_guessed(content: str) -> None:
    assert read_letter(content, OPTIONS) is None


def test_the_text_of_two_options_names_neither() -> None:
    assert read_letter("red", ("red", "Red ", "blue")) is None


def test_an_option_whose_text_is_a_letter_yields_to_the_letter() -> None:
    assert read_letter("B", ("B", "A")) == "B"


def test_an_option_that_begins_like_a_letter_is_read_by_its_text() -> None:
    assert read_letter("A. Lincoln", ("Grant", "A. Lincoln")) == "B"


def test_without_options_only_a_bare_letter_counts() -> None:
    assert [read_letter(text, ()) for text in ("f", "(F)", "F: x", "x y")] == ["F", "F", None, None]


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("42", "42"),
        (" 42\n", "42"),
        ("-3.50", "-3.5"),
        ("+7", "7"),
        (".5", "0.5"),
        ("5.", "5"),
        ("007", "7"),
        ("４２", "42"),
        ("9" * 100, "9" * 100),
    ],
)
def test_plain_decimals_are_numbers(content: str, number: str) -> None:
    assert read_number(content) == Decimal(number)


@pytest.mark.parametrize(
    "content",
    ["", ".", "-", "1e3", "1e999", "nan", "inf", "-Infinity", "1,000", "1 000", "1_000", "3/4", "٤٢", "④②", "4²"]
    + ["42 cups", "1.2.3", "--1", "0x10", "9" * 101, "9" * 10_000],
)  # fmt: skip
def test_nothing_else_is_a_number(content: str) -> None:
    assert read_number(content) is None


@pytest.mark.parametrize(
    ("content", "moments"),
    [
        ("3", [(3, 3)]),
        ("３", [(3, 3)]),
        (" 3.5 ,\n12.0 ", [(3.5, 3.5), (12, 12)]),
        ("3.0-4.5", [(3, 4.5)]),
        ("3.0 to 4.5, -2  to 1", [(3, 4.5), (-2, 1)]),
        ("3.0 - 4.5, 3", [(3, 4.5), (3, 3)]),
        ("3,3,3", [(3, 3)] * 3),
        ("-2, -3--1, -1-2", [(-2, -2), (-3, -1), (-1, 2)]),
        ("4-4", [(4, 4)]),
    ],
)
def test_moments_are_numbers_and_spans_in_seconds(content: str, moments: list[tuple[float, float]]) -> None:
    assert read_moments(content) == moments


@pytest.mark.parametrize(
    "content",
    ["", " ", ",", "3,", "3,,4", "3 4", "3;4", "3s", "0:03", "4.5-3", "1-2-3", "3–4", "3-", "3to4", "three", "nan"]
    + ["inf", "1e3", "1e999", "٣", "③", ".5", "5.", "+3", "3, x", "9" * 10, "9" * 10_000]
    + ["3.0-" + "9" * 10_000, "[3, 4]"],
)  # fmt: skip
def test_one_unreadable_moment_makes_all_unreadable(content: str) -> None:
    assert read_moments(content) is None


@given(texts, texts)
@settings(max_examples=200, deadline=None)
def test_any_text_reads_as_something_or_as_none(text: str, option: str) -> None:
    for tag in TAGS:
        only_block(text, tag)
    blocks = blocks_in_order(text, TAGS)
    assert blocks is None or only_block(text, "answer") == blocks[-1]
    letter = read_letter(text, ("red", option))
    assert letter in (None, "A", "B")
    moments = read_moments(text)
    assert moments is None or all(start <= end for start, end in moments)
    read_number(text)


@given(
    st.lists(contents, min_size=3, max_size=3),
    st.lists(st.sampled_from(["", " ", "\n\t"]), min_size=4, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_what_is_written_as_blocks_is_read_back(contents: list[str], gaps: list[str]) -> None:
    blocks = [f"<{tag}>{content}</{tag}>" for tag, content in zip(TAGS, contents, strict=True)]
    text = gaps[0] + "".join(block + gap for block, gap in zip(blocks, gaps[1:], strict=True))
    assert blocks_in_order(text, TAGS) == tuple(contents)
    assert blocks_in_order(text + "<answer>", TAGS) is None
    assert blocks_in_order("x" + text, TAGS) is None


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(0, 99)), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_spans_are_read_back(spans: list[tuple[int, int]]) -> None:
    text = ", ".join(f"{start / 4}-{(start + length) / 4}" for start, length in spans)
    assert read_moments(text) == [(start / 4, (start + length) / 4) for start, length in spans]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "<answer>",
        "<",
        "< ",
        "</",
        "<answer",
        "<answer ",
        " ",
        "<answer>B</answer>",
        "(",
        "B.",
        "3-",
        "3,",
        "-",
        "9",
        "9 - ",
    ],
)
def test_a_long_text_takes_time_in_proportion(text: str) -> None:
    """Quadratic time would be minutes to hours for a million characters; linear is well under a second."""
    long = text * (1_000_000 // len(text))
    start_s = time.process_time()
    for each in (long, "<" + long, f"<keyframes>{long}</keyframes>", f"<answer> {long}</answer>"):
        only_block(each, "answer")
        blocks_in_order(each, TAGS)
    read_letter(long, OPTIONS)
    read_number(long)
    read_moments(long)
    normalise(long)
    assert time.process_time() - start_s < 20
