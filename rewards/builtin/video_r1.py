"""Video-R1's rewards exactly as published, with their quirks, to compare with and to reproduce its runs.

From `src/r1-v/src/open_r1/grpo.py` of https://github.com/tulerfeng/Video-R1 at commit 59d65c3 (paper: arXiv
2503.21776): the five kinds of answers there (multiple choice, numerical, OCR, free-form, regression) and, as the sixth
rule, the format; of any other kind, of which its data has none, an answer scores 0 there and is an error here.
Two things differ on purpose: there a whole batch is taken for the kind of its first question, here each question
has its own; and patterns that take quadratic time on hostile completions are replaced by equivalent searches.

Its length and temporal rewards are `length_window` and `t_grpo`, both with `right_by: video_r1_accuracy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from grpo.groups import Rollout, Sample
from rewards import reward
from rewards.builtin.answers import mean_rouge
from rewards.builtin.matching import word_error_rate

TYPE_OF_TASK = {
    "choice": "multiple choice",
    "number": "numerical",
    "ocr": "OCR",
    "text": "free-form",
    "open": "free-form",
    "regression": "regression",
}
_BETWEEN_BLOCKS = re.compile(r"</think>\s*+<answer>")


@reward
def video_r1_accuracy(rollout: Rollout) -> float | None:
    """Video-R1's accuracy reward, 0 to 1, by the column `problem_type` if the record has one, else by the task.

    - multiple choice: 1 if equal to the letter, case and all; `(B)` and `B.` get 0.
    - numerical: 1 if equal when rounded to two decimals; 0 if a `.` or `,` is in one of them only.
    - OCR: 1 - word error rate, case sensitive, clipped.
    - free-form: mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, stemmed.
    - regression: 1 - (|given - right| + 1e-9) / (|right| + 1e-9), clipped; `nan` gets 1, and 0 for 0 gets 0.

    The answer is the first answer block's; an answer without one is the empty text. None for a task without a
    counterpart (`span`); ValueError for a `problem_type` that Video-R1 does not know and would score 0.
    """
    kind = problem_type(rollout.sample)
    if kind is None:
        return None
    return ACCURACIES[kind](rollout.sample.answer.strip(), first_answer(rollout.text))


@reward
def video_r1_format(rollout: Rollout) -> float:
    """1 if the completion is a think block, white space and an answer block from first to last character, else 0.

    Anything may stand inside the blocks, further blocks too; a line break at the end is too much.
    """
    text = rollout.text
    whole = text.startswith("<think>") and text.endswith("</answer>")
    return float(whole and _BETWEEN_BLOCKS.search(text) is not None)


def problem_type(sample: Sample) -> str | None:
    """Video-R1's name for the kind of question; None for a task that it has not."""
    kind = sample.columns.get("problem_type")
    if kind is None:
        # A null counts as missing.
        kind = TYPE_OF_TASK.get(sample.task)
    if kind is not None and kind not in ACCURACIES:
        raise ValueError(f"{sample.source}: problem_type {kind!r} is none of {', '.join(ACCURACIES)}")
    return kind


def first_answer(text: str) -> str:
    """Content of the first block, up to the first closing mark after its opening one, stripped; "" without one."""
    _, opened, rest = text.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return content.strip() if opened and closed else ""


def multiple_choice(wanted: str, got: str) -> float:
    return float(got == wanted)


def numerical(wanted: str, got: str) -> float:
    if any(mark in wanted for mark in ".,") != any(mark in got for mark in ".,"):
        return 0.0
    right, given = published_number(wanted), published_number(got)
    return float(right is not None and given is not None and round(right, 2) == round(given, 2))


def ocr(wanted: str, got: str) -> float:
    return 1 - word_error_rate(wanted.split(), got.split())


def free_form(wanted: str, got: str) -> float:
    return max(0.0, min(1.0, mean_rouge(wanted, got)))


def regression(wanted: str, got: str) -> float:
    right, given = published_number(wanted), published_number(got)
    if right is None or given is None:
        return 0.0
    error = (abs(given - right) + 1e-9) / (abs(right) + 1e-9)
    # max(0.0, nan) is 0.0, so that nan is exactly right
    return 1 - min(1.0, max(0.0, error))


def published_number(text: str) -> float | None:
    """`float` of the text without its commas: also of `nan`, `1_000` and foreign digits."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


ACCURACIES: Mapping[str, Callable[[str, str], float]] = {
    "multiple choice": multiple_choice,
    "numerical": numerical,
    "OCR": ocr,
    "free-form": free_form,
    "regression": regression,
}
