"""Rewards for the reasoning: whether it repeats itself, its language, and whether it leads to the answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from grpo.groups import Rollout
from rewards import reward
from rewards.builtin.extras import import_extra
from rewards.builtin.matching import answer_of, read_choice
from rewards.parsing import THINK, only_block
from rewards.spelling import folded

# About a sentence: enough to tell a language by, short enough to notice a change.
CHUNK_CHARS = 120
SENTENCE_END = re.compile(r"(?<=[.!?])\s++|\n++")
NEGATION = re.compile(
    r"\bnot\b|n['’]t\b|\b(?:cannot|never|neither|nor|no|wrong|incorrect|false|unlikely|instead|rather"
    r"|eliminat\w*+|exclud\w*+|rul(?:e|ed|ing)\s++out)\b",
    re.IGNORECASE,
)


@reward
def repetition(rollout: Rollout, *, ngram_tokens: int = 20) -> float:
    """-(1 - distinct n-grams / n-grams) of the completion's tokens: 0 where none comes back, towards -1 in a loop;
    0 for a completion with less than one n-gram.

    The sparse penalty of arXiv 2502.03373 as its code has it, which takes n-grams of 40 words; tokens also
    tell repetitions in languages without spaces. Sentences share short n-grams that nobody calls repetition.
    """
    if ngram_tokens < 1:
        raise ValueError(f"repetition: ngram_tokens={ngram_tokens} is below 1")
    shifted = (rollout.token_ids[shift:] for shift in range(ngram_tokens))
    ngrams = list(zip(*shifted, strict=False))
    return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


@reward
def language(rollout: Rollout, *, language: str = "en", min_letters: int = 40) -> float | None:
    """Share, 0 to 1, of the reasoning that is in the language (an ISO 639-1 code such as `en`, `zh`, `de`).

    After the language consistency reward of DeepSeek-R1 (arXiv 2501.12948, section 2.3.2), which counts words;
    this one counts pieces of 120 characters whose language py3langid (https://pypi.org/project/py3langid, its
    model comes with it) tells with more than half of the probability. None without a think block, if it was
    asked for, for fewer than `min_letters` letters, and where no piece can be told.
    """
    identifier = _identifier()
    if language not in identifier.labels:
        raise ValueError(f"language: {language!r} is none of {', '.join(sorted(identifier.labels))}")
    reasoning = only_block(rollout.text, THINK) if THINK in rollout.tags else rollout.text
    if reasoning is None or sum(char.isalpha() for char in reasoning) < min_letters:
        return None
    pieces = [reasoning[at : at + CHUNK_CHARS] for at in range(0, len(reasoning), CHUNK_CHARS)]
    told = [(len(piece), *identifier.classify(piece)) for piece in pieces]
    sure = [(length, found) for length, found, probability in told if probability > 0.5]
    total = sum(length for length, _ in sure)
    return sum(length for length, found in sure if found == language) / total if total else None


@lru_cache
def _identifier() -> Any:
    """py3langid's model with probabilities; an object of our own, because its module-wide one can be set."""
    module = import_extra("py3langid.langid")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


@reward
def consistency(rollout: Rollout) -> float | None:
    """1 if the option that the reasoning concludes is the one that the answer names, 0 if it is another. Our own.

    None unless the task is `choice` and both can be read: the answer by `read_choice`, the conclusion by
    `concluded_option`, which abstains rather than guess. Right or wrong makes no difference.
    """
    if rollout.sample.task != "choice":
        return None
    reasoning = only_block(rollout.text, THINK)
    answered = read_choice(answer_of(rollout), rollout.sample.options)
    concluded = concluded_option(reasoning, rollout.sample.options) if reasoning else None
    return None if answered is None or concluded is None else float(answered == concluded)


def concluded_option(reasoning: str, options: Sequence[str]) -> str | None:
    """Letter of the option that an English reasoning ends on, else None.

    That is the one option in the last sentence that names any; where it names several, the one called the answer
    (`the answer is B`). A sentence with a negation says what is not meant too: only what it calls the answer before
    the negation counts, and if that is nothing, it may take back what was said before, and None is read. A negation
    inside an option's text (`no`, `not visible`) is none. An option is named by its letter (`(B)`, `option B`, `B`;
    a bare A or I may be a word) or by its text, if that has three letters or is called the answer.
    """
    mention, conclusion = _patterns(tuple(map(folded, options)))
    for sentence in reversed(SENTENCE_END.split(folded(reasoning))):
        mentioned, called = [*mention.finditer(sentence)], [*conclusion.finditer(sentence)]
        negated_at = _negated_at(sentence, [*mentioned, *called])
        before = [found for found in called if negated_at is None or found.end() <= negated_at]
        named = {_letter(found) for found in before or ([] if negated_at is not None else mentioned)}
        if named or negated_at is not None:
            return named.pop() if len(named) == 1 else None
    return None


def _negated_at(sentence: str, named: Sequence[re.Match[str]]) -> int | None:
    """Where the first negation stands that is no part of an option."""
    in_options = {at for found in named for at in range(*found.span())}
    return next(
        (each.start() for each in NEGATION.finditer(sentence) if each.start() not in in_options), None
    )


def _letter(found: re.Match[str]) -> str:
    """The option that a match names, by a group called like its letter or by a group that holds the letter."""
    return found.lastgroup or next(filter(None, found.groups())).upper()


@lru_cache
def _patterns(options: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What names an option, and what calls one the answer."""
    letters = string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase
    bracketed, end = rf"\(([{letters}{letters.lower()}])\)", r"(?![\w'’])"
    bare = "".join(sorted({*letters} - {"A", "I"}))
    alone = rf"(?<![\w'’])([{bare}]){end}" if bare else "(?!)"
    of_noun = rf"\b(?i:option|choice|answer)\s++([{letters}]){end}"
    mention = rf"{bracketed}|{of_noun}|{alone}|{_any_text(options, min_letters=3)}"
    verb = r"\b(?i:(?:answer|choice|option)(?:\s++(?:is|must\s++be|should\s++be)\b\s*+:?+|\s*+:)\s*+)"
    between = r"(?i:(?:option|choice|the|an?|clearly|probably|likely|therefore)\s++){0,3}?"
    conclusion = rf"{verb}{between}(?:{bracketed}|([{letters}]){end}|{_any_text(options, min_letters=0)})"
    return re.compile(mention), re.compile(conclusion)


def _any_text(options: Sequence[str], *, min_letters: int) -> str:
    """Pattern of the options' texts, each in a group called like its letter; without those that two options have.

    What negates as a word of its own (`no`) is an option only where no word follows: not in `is no longer B`.
    """
    folded = [option.casefold() for option in options]
    texts = [
        (option, letter)
        for option, letter in zip(options, string.ascii_uppercase, strict=False)
        if option.strip()
        and folded.count(option.casefold()) == 1
        and sum(char.isalpha() for char in option) >= min_letters
    ]
    longest_first = sorted(texts, key=lambda each: -len(each[0]))
    groups = [
        f"(?P<{letter}>{re.escape(option)})" + (r"(?!\s++\w)" if NEGATION.fullmatch(option) else "")
        for option, letter in longest_first
    ]
    return rf"(?<!\w)(?i:{'|'.join(groups) or '(?!)'})(?!\w)"
