"""How an answer's content is compared with what was asked for: words, numbers, options. No rewards in here.

As in `rewards.parsing`, reading never guesses, and takes time linear in the completion.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from grpo.groups import Rollout, Sample
from rewards.builtin.extras import import_extra
from rewards.parsing import ANSWER, is_blank, normalise, only_block, read_letter, read_number
from rewards.spelling import STOPS, folded, layers, without_stop

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
OPENING, CLOSING = "\"'`*_([{«¿¡「『【《〈", f"\"'`*_)]}}»!?,;:」』】》〉؟،؛、{STOPS}"
MAX_LATEX_CHARS, MAX_LATEX_DEPTH = 100, 4

_LEAD = re.compile(
    r"(?:(?:the|my|so|final|correct|best|right)\s++){0,4}+(?:answer|option|choice)(?:\s++is\b)?+(?:\s*+:\s*+|\s++|(?=\())(.+)",
    re.IGNORECASE | re.DOTALL,
)
_ORDINAL = re.compile(rf"(?:the\s++)?+({'|'.join(ORDINALS)})\s++(?:option|choice|answer|one)", re.IGNORECASE)
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3}){1,30}(?:\.[0-9]{1,100})?")
_SCIENTIFIC = re.compile(r"[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})?[eE][+-]?[0-9]{1,3}")
_FRACTION = re.compile(r"[+-]?[0-9]{1,100}\s{0,9}/\s{0,9}[0-9]{1,100}")
# Only what makes up a number, and only small powers: sympy would work on 9^{9^{9}} until the run ends.
_LATEX_NUMBER = re.compile(
    r"(?:[0-9.,+\-*/(){}\[\]\s]|\\(?:[dt]?frac|sqrt|pi|times|cdot|left|right|boxed)(?![A-Za-z])|\\\$"
    r"|\^(?:[0-9]|\{[+-]?[0-9]{1,2}\}))*+"
)
_TWO_NUMBERS = re.compile(r"[0-9.]\s++[0-9.]|\.[0-9]*+\.")


class Quantity(NamedTuple):
    """A number that was read."""

    value: Fraction
    percent: bool
    """A percent sign followed; `value` is what stood before it."""


def answer_of(rollout: Rollout) -> str:
    """Content of the one answer block without white space around it; "" if there is none to be seen."""
    content = only_block(rollout.text, ANSWER)
    return "" if content is None or is_blank(content) else content.strip()


def accepted_answers(sample: Sample) -> tuple[str, ...]:
    """The sample's answer and those of its column `extra_answers`; ValueError if that is no list of texts."""
    extra = sample.columns.get("extra_answers") or []
    if not isinstance(extra, list | tuple) or not all(isinstance(each, str) for each in extra):
        raise ValueError(f"{sample.source}: extra_answers is no list of texts but {str(extra)[:60]!r}")
    return (sample.answer, *extra)


def plain_words(text: str) -> list[str]:
    """Words without what makes no other answer of them: case, form of Unicode, punctuation around a word,
    English articles, and whether a number up to ten is a word or a digit. `A:` and `(A)` are no articles."""
    opened = [word.lstrip(OPENING) for word in folded(text).casefold().split()]
    words = [plain for word in opened if word not in ARTICLES and (plain := word.rstrip(CLOSING))]
    words = words or [word for word in opened if word in ARTICLES]
    return [str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words]


def read_choice(content: str, options: Sequence[str]) -> str | None:
    """Upper-case letter of the option that an answer names, else None.

    Beyond `read_letter`: marks that are not closed, words before it (`Option B`, `the answer is (B)`), its place
    (`the second option`; not where an option speaks of places itself), and option texts that have the same
    `plain_words`, if one only has.
    """
    if letter := read_letter(content, options):
        # Before anything is taken for a mark: $5, 5'.
        return letter
    content = _unmarked(content)
    lead = _LEAD.fullmatch(content)
    for text in (content, _unmarked(lead[1]) if lead else ""):
        if letter := read_letter(text, options) if text else None:
            return letter
    ordinal = _ORDINAL.fullmatch(content)
    if ordinal and not any(word in ORDINALS for option in options for word in plain_words(option)):
        letter = "ABCDEFGH"[ORDINALS.index(ordinal[1].lower())]
        return letter if len(options) > ord(letter) - ord("A") else None
    wanted = plain_words(lead[1] if lead else content)
    matches = [index for index, option in enumerate(options) if wanted and plain_words(option) == wanted]
    return chr(ord("A") + matches[0]) if len(matches) == 1 else None


def _unmarked(content: str) -> str:
    """The content without marks around it, even marks that only open or only close, as in `**Answer:** B`."""
    return layers(without_stop(layers(content)[-1].strip("$*_`\"' ")))[-1]


def read_quantity(content: str, *, latex: bool = False) -> Quantity | None:
    """The number that the whole content is, else None: plain (`-1.5`), with groups of three digits (`1,000`),
    as a fraction of whole numbers (`3/4`), scientific (`1.5e3`), in LaTeX if asked, each with a `%` or without.

    Units are not read, nor a number inside a sentence: which of several is meant would be a guess.
    """
    body = without_stop(layers(content)[-1])
    if latex:
        # 1{,}000 and 1\,000
        body = body.replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    percent = body.endswith("%")
    body = body.removesuffix("%").removesuffix("\\").rstrip() if percent else body
    plain = read_number(body)
    value = Fraction(plain) if plain is not None else _read_written(body)
    if value is None and latex:
        value = _read_latex(body)
    return None if value is None else Quantity(value, percent)


def _read_written(body: str) -> Fraction | None:
    if _GROUPED.fullmatch(body):
        return Fraction(body.replace(",", ""))
    if _SCIENTIFIC.fullmatch(body):
        return Fraction(body)
    if _FRACTION.fullmatch(body):
        over, under = (int(part) for part in body.split("/"))
        return Fraction(over, under) if under else None
    return None


def _read_latex(body: str) -> Fraction | None:
    """The real number that a LaTeX expression is, to 15 digits if irrational; None if math-verify reads none."""
    if not _is_latex_number(body):
        return None
    math_verify, sympy = _math_verify(), import_extra("sympy")
    # Its time-outs are off: they work by signals, which only a main thread gets.
    found = math_verify.parse(f"${body}$", [math_verify.LatexExtractionConfig()], parsing_timeout=None)
    if not found or not isinstance(found[0], sympy.Expr):
        return None
    if found[0].is_Rational:
        return Fraction(int(found[0].p), int(found[0].q))
    number = sympy.N(found[0], 15)
    return Fraction(str(number)) if number.is_Float and number.is_finite else None


def _is_latex_number(body: str) -> bool:
    """Whether it is worth parsing and harmless: mathematics, not `3-2` or `1 2`, which math-verify would work
    out; short, and with few brackets in each other, because its parser's time doubles with each of them."""
    if len(body) > MAX_LATEX_CHARS or not ("\\" in body or "^" in body) or body.count("^") > 1:
        return False
    if not _LATEX_NUMBER.fullmatch(body) or _TWO_NUMBERS.search(body):
        return False
    depths = accumulate((char in "([{") - (char in ")]}") for char in body)
    return max(depths) <= MAX_LATEX_DEPTH


@lru_cache
def _math_verify() -> Any:
    """math-verify, without its warning that there is no time-out: `_is_latex_number` bounds its work."""
    module = import_extra("math_verify")
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    return module


def close(got: Quantity, wanted: Quantity, *, abs_tolerance: Fraction, rel_tolerance: Fraction) -> bool:
    """Whether they differ by no more than the larger tolerance, in one of their `readings`."""
    pairs = readings(got, wanted)
    return any(abs(a - b) <= max(abs_tolerance, rel_tolerance * abs(b)) for a, b in pairs)


def readings(got: Quantity, wanted: Quantity) -> list[tuple[Fraction, Fraction]]:
    """The pairs of numbers to compare. If only one of the two has a percent sign, the other may have left it out (`50`
    for `50%`) or worked it out (`0.5` for `50%`)."""
    as_written = (got.value, wanted.value)
    if got.percent == wanted.percent:
        return [as_written]
    a, b = (each.value / 100 if each.percent else each.value for each in (got, wanted))
    return [as_written, (a, b)]


def relative_error(got: Fraction, wanted: Fraction) -> Fraction:
    """|got - wanted| / |wanted|, at most 1; of a wanted 0 everything else is off by 1."""
    if wanted == 0:
        return Fraction(got != 0)
    return min(abs(got - wanted) / abs(wanted), Fraction(1))


def word_error_rate(wanted: Sequence[str], got: Sequence[str]) -> float:
    """Insertions, deletions and replacements of words that make one of the other, per wanted word; at most 1.

    Ten lines and no library: with more than twice as many words as wanted it is 1 without counting, so the
    table stays as small as the annotated text, however long the completion.
    """
    if len(got) >= 2 * max(1, len(wanted)):
        return 1.0
    above = list(range(len(got) + 1))
    for i, word in enumerate(wanted, start=1):
        row = [i]
        for j, other in enumerate(got, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
        above = row
    return min(1.0, above[-1] / max(1, len(wanted)))


def same_text(content: str, answers: Sequence[str]) -> bool:
    """Whether the content is one of the answers, up to case, white space, form of Unicode and marks around it."""
    wanted = [normalise(answer) for answer in answers]
    return any(normalise(layer) in wanted for layer in layers(content))
