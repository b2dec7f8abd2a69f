"""Spellings of answers of each task: those that say the right one, and those that must not be read as it.

`strict` is the value of `accuracy`, `tolerant` that of the task's own reward (`choice`, `number`, `text`, `ocr`).
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.groups import Rollout, Sample, Task
from rewards.builtin.accuracy import accuracy
from rewards.builtin.answers import choice, exact_set, number, ocr, rouge, text
from rewards.builtin.moments import answered_point
from rewards.builtin.reasoning import concluded_option
from rewards.builtin.temporal import event_order, temporal_iou
from rewards.hostile import make_group
from rewards.spelling import folded, layers

OPTIONS = ("a cup", "a knife", "café", "5")
TOLERANT: dict[Task, Callable[[Rollout], float | None]] = {
    "choice": choice,
    "number": number,
    "text": text,
    "ocr": ocr,
}


def answered(task: Task, right: str, content: str, options: tuple[str, ...] = OPTIONS) -> Rollout:
    sample = Sample(
        id="s",
        question="?",
        answer=right,
        task=task,
        source="test.jsonl:1",
        options=options if task == "choice" else (),
    )
    return make_group([f"<think>x</think><answer>{content}</answer>"], sample).rollouts[0]


def check(task: Task, right: str, content: str, *, strict: float, tolerant: float) -> None:
    rollout = answered(task, right, content)
    assert (accuracy(rollout), TOLERANT[task](rollout)) == (strict, tolerant)


@pytest.mark.parametrize(
    "content",
    ["B", "b", "Ｂ", "ｂ", "𝐁", "(B)", "（Ｂ）", "⒝", "[B]", "［Ｂ］"]
    + ["B.", "B。", "Ｂ．", "B｡", "B।", "B۔", "B、", "B：", "B）"]
    + ["B - a knife", "B – a knife", "B—a knife", "B: a knife", "B：a knife", "B) a knife", "(B) a knife"]
    + ["(B) - a knife", "[B] a knife", "[B]: a knife", "B (a knife)", "B. a knife.", 'B: "a knife"', "B. **a knife**"]
    + ["**B**", "*B*", "__B__", "_B_", "`B`", '"B"', "“B”", "'B'", "「B」", "**B.**", "**B**.", "**(B)**", "**[B]**"]
    + ["**B.** a knife", "**B**: a knife", "**B** - a knife", "**B. a knife**", "(B) **a knife**", "**B** a knife"]
    + [r"\boxed{B}", r"\boxed{\text{B}}", r"$\boxed{\text{B}}$", r"\text{B}", r"\textbf{B}", r"\mathrm{B}", "$B$"]
    + ["【B】", r"\(B\)", r"\[ \boxed{B} \]", r"\boxed{(B)}", r"\boxed{B. a knife}", r"\boxed{B}: a knife"]
    + [r"\boxed{\textbf{\text{B}}}", r"**\boxed{B}**", r"\boxed{B}."]
    + ["a knife", "A KNIFE", "a knife.", "ａ　ｋｎｉｆｅ", "**a knife**", r"\boxed{a knife}", "a\u00a0knife"],
)  # fmt: skip
def test_a_choice_says_b(content: str) -> None:
    check("choice", "B", content, strict=1, tolerant=1)


@pytest.mark.parametrize(
    "content",
    ["Option B", "the answer is [B]", "**Answer:** B", "**Answer: B**", "Answer：Ｂ"]
    + [r"The answer is \boxed{\text{B}}.", "the knife", "answer: **B**", "B**", "The answer is B。"],
)  # fmt: skip
def test_a_choice_says_b_in_more_words(content: str) -> None:
    check("choice", "B", content, strict=0, tolerant=1)


@pytest.mark.parametrize("right", ["A", "B"])
@pytest.mark.parametrize(
    "content",
    ["A or B", "A, B", "Ａ，Ｂ", "A、B", "A/B", "A - B", "B – A", "A (B)", "[A][B]"]
    + ["[A] [B]", "(A)(B)", "A. B.", "(A) B"]
    + ["**A** **B**", "**A** or **B**", r"\boxed{A}\boxed{B}", r"\boxed{A} or \boxed{B}", r"\text{A}\text{B}"]
    + ["B - a cup", "[B] a cup", "B (a cup)", "**B** a cup", r"\boxed{B} a cup", "A: a knife", "a knife (A)", "AB"]
    + ["**B. a cup** a knife", r"\boxed{B or A}: a knife"]
    + ["B because", "B - the knife or the cup", "B?", "B!", "not B", "B-", "((B))", "(B", "[B", "B]", "[[B]]"]
    + ["В", "Β", "Ⓑ", "🅱", "🅱️", "ᴮ", "ᵇ", "ß", "Б", "B\u0301", "B²", "B\u200bA", "{B}", "<b>B</b>", "knife and cup"]
    + [r"\boxed{}", "****", "**", "$$", '""', "[]", "()", "。", r"\boxed{B", r"\input{B}", r"\frac{B}{1}"],
)  # fmt: skip
def test_what_names_two_letters_or_none_is_no_choice(content: str, right: str) -> None:
    check("choice", right, content, strict=0, tolerant=0)


@pytest.mark.parametrize(
    ("options", "content", "letter"),
    [
        (("5", "-5"), "B. -5", "B"),
        (("5", "-5"), "B -5", None),  # "B - 5", which is A's text, or "B", "-5"
        (("5", "-5"), "−5", "B"),
        (("25", "5²"), "5²", "B"),
        (("52", "25"), "5²", None),
        (("21/2", "2½"), "2½", "B"),
        (("21/2", "7"), "2½", None),
        (("café", "cup"), unicodedata.normalize("NFD", "café"), "A"),
        ((unicodedata.normalize("NFD", "café"), "cup"), "CAFÉ", "A"),
        (("don't know", "yes"), "don’t know", "A"),
        (("A cup.", "A knife."), "B. A knife", "B"),
        (("A cup.", "A knife."), "a knife", "B"),
        (("a knife", "a knife."), "a knife.", "B"),  # as it is written, first
        (("红色", "蓝色"), "B、蓝色。", "B"),
        (("红色", "蓝色"), "「蓝色」", "B"),
        (("B-", "A"), "B-", "A"),
        (("*x*", "x"), "*x*", "A"),
        (("*x*", "x"), "x", "B"),
    ],
)  # fmt: skip
def test_an_options_own_signs_are_kept(options: tuple[str, ...], content: str, letter: str | None) -> None:
    for right in ("A", "B"):
        rollout = answered("choice", right, content, options)
        assert accuracy(rollout) == choice(rollout) == float(right == letter)


@pytest.mark.parametrize(
    ("right", "content", "strict"),
    [("-3", each, 1) for each in ("-3", "−3", "－3", "-３", "﹣3", "**-3**")]
    + [("-3", each, 1) for each in ("*-3*", "`-3`", '"-3"', "**−3**.", "-3.0", "-3。", r"\text{-3}", r"\boxed{-3}")]
    + [("-3", each, 1) for each in (r"\boxed{\text{-3}}", "$-3$", r"\(-3\)", r"\mathbf{-3}")]
    + [("３", "3", 1), ("−3", "-3", 1), ("42", "𝟒𝟐", 1), ("3.5", "３．５", 1), ("3.5", "3.5.", 1), ("$42$", "42", 1)]
    + [("1000", "１，０００", 0), ("1000", "**1,000**", 0), ("50%", "50％", 1), ("0.5", r"**50\%**", 0)]
    + [("0.75", r"\boxed{\frac{3}{4}}", 0), ("-0.5", r"−\frac{1}{2}", 0), ("0.75", "**3/4**", 0)],
)  # fmt: skip
def test_a_number_is_what_is_written(right: str, content: str, strict: float) -> None:
    check("number", right, content, strict=strict, tolerant=1)


@pytest.mark.parametrize(
    ("right", "content"),
    [("22", "2²"), ("2", "2²"), ("21", "2½"), ("10.5", "2½"), ("12", "½"), ("1", "½"), ("31", "3①"), ("31", "3⒈")]
    + [("1", "①"), ("103", "10³"), ("10", "10⁻³"), ("5", "V"), ("5", "Ⅴ"), ("42", "٤٢"), ("42", "४२"), ("42", "四十二")]
    + [("1", "㏠"), ("3", "(3)"), ("-3", "(3)"), ("3", "[3]"), ("3", "5-2"), ("34", "3 4"), ("3", "–3"), ("3", "--3")]
    + [("34", "**3****4**"), ("34", r"\boxed{3}\boxed{4}"), ("3", r"\boxed{3}\boxed{4}"), ("3", "$3$ or $4$")]
    + [("3", r"\text{3 cups}"), ("3", "-3"), ("3", "3。5"), ("3.5", "3。5"), ("3", "3?"), ("3", "-−3")]
    + [("3", "3\u0301"), ("5", "5'"), ("5", "$5"), ("3", "3 or 4")],
)  # fmt: skip
def test_what_is_no_number_or_another_is_not_read(right: str, content: str) -> None:
    check("number", right, content, strict=0, tolerant=0)


@pytest.mark.parametrize("task", ["text", "ocr"])
@pytest.mark.parametrize(
    ("right", "content", "strict"),
    [
        ("한국어 간판", unicodedata.normalize("NFD", "한국어 간판"), 1),
        (unicodedata.normalize("NFD", "한국어 간판"), "한국어 간판", 1),
        (unicodedata.normalize("NFD", "Café Crème"), "café crème", 1),
        ("Ångström", "A\u030angström", 1),
        ("ガード", "ｶﾞｰﾄﾞ", 1),
        ("ＥＸＩＴ", "exit", 1),
        ("office", "oﬃce", 1),
        ("25 ℃", "25 °C", 1),
        ("5㎡", "5m²", 1),
        ("no\u00a0entry", "no entry", 1),
        ("it's open", "it’s open", 1),
        ("−5 °C", "-5 °C", 1),
        ("well-known", "well‑known", 1),
        ("EXIT", "**EXIT**", 1),
        ("EXIT", "「EXIT」", 1),
        ("EXIT", r"\boxed{\text{EXIT}}", 1),
    ],
)
def test_a_text_is_the_same_in_another_form(task: Task, right: str, content: str, strict: float) -> None:
    check(task, right, content, strict=strict, tolerant=1)


@pytest.mark.parametrize(
    ("right", "content", "strict", "tolerant"),
    [
        ("22 m", "2² m", 0, 0),
        ("5m2", "5m²", 0, 0),
        ("H2O", "H₂O", 0, 0),
        ("21/2 cups", "2½ cups", 0, 0),
        ("cafe", "café", 0, 0),
        ("resume", "résumé", 0, 0),
        ("1", "①", 0, 0),
        ("Straße", "STRASSE", 1, 1),
        ("café", "cafe´", 0, 0),
        ("红色", "红色。", 0, 1),
        ("红色", "《红色》", 0, 1),
        ("वह गिरता है", "वह गिरता है।", 0, 1),
        ("the red cup", r"\boxed{\text{red cup}}", 0, 1),
        ("EXIT", r"\boxed{EXIT}\boxed{WAY}", 0, 0),
        ("EXIT", "**EXIT** **WAY**", 0, 0),
        ("a cup", "a cup or a knife", 0, 0),
    ],
)
def test_a_text_that_says_something_else_is_not_read(
    right: str, content: str, strict: float, tolerant: float
) -> None:
    check("text", right, content, strict=strict, tolerant=tolerant)


def test_case_sensitive_ocr_and_rouge_see_one_form() -> None:
    decomposed = unicodedata.normalize("NFD", "Café Crème")
    assert ocr(answered("ocr", "Café Crème", decomposed), case_sensitive=True) == 1
    assert ocr(answered("ocr", decomposed, "Café Crème"), case_sensitive=True) == 1
    assert rouge(answered("open", decomposed, "Café Crème")) == pytest.approx(1)
    assert rouge(answered("open", "red cup", "ｒｅｄ ｃｕｐ")) == pytest.approx(1)
    assert rouge(answered("open", "red cup", r"\boxed{red cup}")) == pytest.approx(1)


@pytest.mark.parametrize(
    "content", ["cup，knife", "cup、knife", "knife; cup", r"\boxed{cup, knife}", "**cup**，**knife**"]
)
def test_items_stand_between_commas_of_any_script(content: str) -> None:
    assert exact_set(answered("text", "cup, knife", content)) == 1


@pytest.mark.parametrize(
    "content",
    [
        "3.0−4.5",
        "３．０－４．５",
        "（3.0，4.5）",
        "**3.0-4.5**",
        r"\boxed{3.0, 4.5}",
        r"\text{3.0-4.5}",
        "`[3.0, 4.5]`",
    ],
)
def test_a_span_is_what_is_written(content: str) -> None:
    assert temporal_iou(answered("span", "3.0-4.5", content)) == 1


@pytest.mark.parametrize("content", ["3.0–4.5", "3.0-4.5 or 5-6", r"\boxed{3.0}\boxed{4.5}", "3²-45", "٣-٤"])
def test_what_is_no_span_is_not_read(content: str) -> None:
    assert temporal_iou(answered("span", "3.0-4.5", content)) == 0


def test_moments_and_orders_are_read_in_any_width() -> None:
    assert answered_point("**３．５**", 1) == 3.5
    rollout = answered("text", "x", "Ａ，Ｂ、Ｃ")
    sample = replace(rollout.sample, columns={"events": ["A", "B", "C"]})
    assert event_order(replace(rollout, sample=sample)) == 1


def test_a_conclusion_is_found_in_any_form() -> None:
    decomposed = unicodedata.normalize("NFD", "So it shows the café.")
    assert concluded_option(decomposed, OPTIONS) == "C"
    assert concluded_option("The answer is （Ｂ）.", OPTIONS) == "B"


TEXTS = st.text(
    st.characters() | st.sampled_from("**__``$\\{}()[]「」\"'B.。１²½①⒈ﬁ﷼\u0301\u0f73ｶﾞ"), max_size=30
)


@given(TEXTS)
def test_folding_is_the_same_for_all_forms_and_done_after_once(content: str) -> None:
    once = folded(content)
    assert folded(once) == once
    assert (
        folded(unicodedata.normalize("NFD", content)) == once == folded(unicodedata.normalize("NFC", content))
    )


@pytest.mark.parametrize(
    "kept", ["2²", "H₂O", "½", "①", "⒈", "⑴", "ª", "™", "cup´s", "ﷺ", "٤", "४", "Ⓑ", "–", "—", "。"]
)
def test_what_means_something_else_is_not_folded(kept: str) -> None:
    assert folded(kept) == kept


@given(TEXTS)
def test_layers_go_from_the_outside_to_the_inside(content: str) -> None:
    found = layers(content)
    assert found[0] == folded(content).strip() and len(found) <= 5
    assert all(inside in outside and inside for outside, inside in zip(found, found[1:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["a\u0301\u0316", "\u0301\u0316", "\u0f73", "ﷺ", "**", "$", r"\boxed{", "{", "\\text{}", "'"]
)
def test_a_long_text_takes_time_in_proportion(piece: str) -> None:
    """Quadratic time would be minutes for 100,000 characters; linear is well under a second."""
    long = piece * (100_000 // len(piece))
    start_s = time.process_time()
    for each in (long, r"\boxed{" + long + "}", f"**{long}**", f"B {long}"):
        accuracy(answered("choice", "B", each))
        for task, reward in TOLERANT.items():
            reward(answered(task, "B" if task == "choice" else "1", each))
    assert time.process_time() - start_s < 20
