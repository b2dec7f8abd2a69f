"""Rewards for the answer, one for each kind of answer. Each abstains (None) on questions of another kind.

A completion whose answer can't be read (no answer block, several, a blank one) gets 0. Answers that a record
lists in `extra_answers` count as much as `answer` wherever texts are compared. `accuracy` (rewards/builtin/accuracy.py)
is the strict one for all kinds; `graded_accuracy`, here, gives part of it where an answer is partly right.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grpo.groups import Rollout
from rewards import reward
from rewards.builtin.accuracy import accuracy
from rewards.builtin.extras import import_extra
from rewards.builtin.matching import (
    accepted_answers,
    answer_of,
    close,
    plain_words,
    read_choice,
    read_quantity,
    readings,
    relative_error,
    word_error_rate,
)
from rewards.builtin.temporal import temporal_iou
from rewards.parsing import normalise
from rewards.spelling import folded, layers

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@reward
def choice(rollout: Rollout) -> float | None:
    """1 if the answer names the right option, else 0: by its letter, its place or its text (`read_choice`).

    More tolerant of wording than `accuracy`, and as strict about doubt: two options, or none, is wrong.
    None unless the task is `choice`.
    """
    sample = rollout.sample
    if sample.task != "choice":
        return None
    content = answer_of(rollout)
    return float(bool(content) and read_choice(content, sample.options) == sample.answer)


@reward
def number(
    rollout: Rollout, *, abs_tolerance: float = 0.0, rel_tolerance: float = 0.0, latex: bool = True
) -> float | None:
    """1 if |given - right| <= max(abs_tolerance, rel_tolerance * |right|), else 0.

    Numbers are read by `read_quantity`, LaTeX with math-verify
    (https://github.com/huggingface/Math-Verify); without `latex` no library is needed. Arithmetic is exact.
    None unless the task is `number` or `regression` and the annotated answer a number.
    """
    sample = rollout.sample
    wanted = read_quantity(sample.answer, latex=latex) if sample.task in ("number", "regression") else None
    if wanted is None:
        return None
    if latex:
        # Missing: known at the first completion, not at the first LaTeX.
        import_extra("math_verify")
    got = read_quantity(answer_of(rollout), latex=latex)
    # str: a tolerance of 0.3 is meant as it was written, the binary fraction next to it is less.
    limits = {"abs_tolerance": Fraction(str(abs_tolerance)), "rel_tolerance": Fraction(str(rel_tolerance))}
    return float(got is not None and close(got, wanted, **limits))


@reward
def text(rollout: Rollout) -> float | None:
    """1 if the answer has the words of an accepted one, up to case, articles, punctuation around words and
    number words (`plain_words`, in the manner of VQA's and SQuAD's metrics), else 0.

    None unless the task is `text`, `ocr` or `open`.
    """
    if rollout.sample.task not in ("text", "ocr", "open"):
        return None
    accepted = [plain_words(each) for each in accepted_answers(rollout.sample)]
    said = [plain_words(layer) for layer in layers(answer_of(rollout))]
    return float(any(words and words in accepted for words in said))


@reward
def ocr(rollout: Rollout, *, case_sensitive: bool = False) -> float | None:
    """1 - word error rate, from 0 to 1, against the nearest accepted answer; Video-R1's OCR reward
    (arXiv 2503.21776), which is case sensitive. None unless the task is `ocr`."""
    if rollout.sample.task != "ocr":
        return None
    content = answer_of(rollout)
    if not content:
        return 0.0
    fold = folded if case_sensitive else normalise
    wanted = [fold(each).split() for each in accepted_answers(rollout.sample)]
    return 1 - min(word_error_rate(each, fold(layer).split()) for each in wanted for layer in layers(content))


@reward
def rouge(rollout: Rollout) -> float | None:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, stemmed, 0 to 1, against the best accepted answer.

    Video-R1's reward for free-form answers (arXiv 2503.21776), by https://pypi.org/project/rouge-score, which
    sees ASCII letters and digits only and stems English. An answer of one word gets at most 2/3: it has no
    pair of words. None unless the task is `open` or `text` and an accepted answer has such letters.
    """
    if rollout.sample.task not in ("open", "text"):
        return None
    answers = [folded(each) for each in accepted_answers(rollout.sample)]
    answers = [each for each in answers if re.search(r"[A-Za-z0-9]", each)]
    content = layers(answer_of(rollout))[-1]
    return max((mean_rouge(each, content) for each in answers), default=None)


def mean_rouge(wanted: str, got: str) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming."""
    scores = _rouge_scorer().score(wanted, got)
    return sum(scores[each].fmeasure for each in ROUGE_TYPES) / len(ROUGE_TYPES)


@lru_cache
def _rouge_scorer() -> Any:
    return import_extra("rouge_score.rouge_scorer").RougeScorer(ROUGE_TYPES, use_stemmer=True)


@reward
def exact_set(rollout: Rollout, *, partial: bool = False) -> float | None:
    """1 if the items, separated by commas, semicolons or lines, are those of an accepted answer in any order,
    else 0; if `partial` the F1 of the items. Items are compared by `plain_words`.

    None unless the task is `text` or `open`.
    """
    if rollout.sample.task not in ("text", "open"):
        return None
    got = items_of(answer_of(rollout))
    return max(set_score(items_of(each), got, partial=partial) for each in accepted_answers(rollout.sample))


def items_of(content: str) -> set[str]:
    parts = re.split(r"[,;\n、،؛]", layers(content)[-1])
    return {" ".join(words) for part in parts if (words := plain_words(part))}


def set_score(wanted: set[str], got: set[str], *, partial: bool) -> float:
    """F1 = 2 |both| / (|wanted| + |got|), or whether it is 1."""
    if not wanted or not got:
        return 0.0
    return 2 * len(wanted & got) / (len(wanted) + len(got)) if partial else float(wanted == got)


@reward
def regression(rollout: Rollout, *, latex: bool = True) -> float | None:
    """1 - |given - right| / |right|, clipped to 0..1; Video-R1's regression reward (arXiv 2503.21776).

    Numbers are read as by `number`: LaTeX, percent signs. None unless the task is `regression` and the annotated
    answer a number. What is no number gets 0.
    """
    error = _regression_error(rollout, latex)
    return None if error is None else float(1 - error)


@reward
def relative_accuracy(rollout: Rollout, *, latex: bool = True) -> float | None:
    """VSI-Bench's mean relative accuracy (arXiv 2412.14171, section 3.3): the share of the ten thresholds
    t = 0.5, 0.55, ... 0.95 with |given - right| / |right| < 1 - t. 0 to 1; None as for `regression`."""
    error = _regression_error(rollout, latex)
    return None if error is None else share_of_thresholds(error)


def share_of_thresholds(error: Fraction) -> float:
    """The share of 0.5, 0.45, ... 0.05 that a relative error is below."""
    return sum(error < Fraction(k, 20) for k in range(1, 11)) / 10


def _regression_error(rollout: Rollout, latex: bool) -> Fraction | None:
    """The relative error, 1 for what is no number; None where the question does not ask for a number."""
    sample = rollout.sample
    wanted = read_quantity(sample.answer, latex=latex) if sample.task == "regression" else None
    if wanted is None:
        return None
    if latex:
        # As in `number`.
        import_extra("math_verify")
    got = read_quantity(answer_of(rollout), latex=latex)
    return Fraction(1) if got is None else min(relative_error(*pair) for pair in readings(got, wanted))


@reward
def graded_accuracy(rollout: Rollout) -> float | None:
    """The answer's value by the sample's own task, 0 to 1: `ocr`, `regression`, `open` and `span` are graded by the
    rewards `ocr`, `regression`, `rouge` and `temporal_iou`; the others are right or wrong, by `accuracy`.

    For data sets of mixed tasks, as Video-R1 does it. None where the graded reward abstains.
    """
    graded = {"ocr": ocr, "regression": regression, "open": rouge, "span": temporal_iou}
    return graded.get(rollout.sample.task, accuracy)(rollout)
