"""`accuracy`: is the answer right? Each sample is judged by its own task."""

from __future__ import annotations

from decimal import Decimal

from grpo.groups import Rollout, Sample
from rewards import reward
from rewards.builtin.matching import accepted_answers, same_text
from rewards.parsing import ANSWER, is_blank, only_block, read_letter, read_number


@reward
def accuracy(rollout: Rollout, *, tolerance: float = 0.0) -> float:
    """1 if the one answer block holds the right answer, else 0; several or no blocks are wrong.

    A choice is read by `read_letter`; a number may differ by `tolerance`; all else has to equal the
    answer, or one of the record's `extra_answers`, up to case and white space.

    It never gives part of a point, so that it can gate other rewards and be called accuracy in a table. An
    `ocr` or `regression` answer that is nearly right, or an `open` one in other words, is wrong here:
    `graded_accuracy` (rewards/builtin/answers.py) grades these, and a judge reads what no rule can.
    """
    content = only_block(rollout.text, ANSWER)
    if content is None or is_blank(content):
        return 0.0
    return float(is_right(content, rollout.sample, tolerance=tolerance))


def is_right(content: str, sample: Sample, *, tolerance: float) -> bool:
    """Whether the content of an answer block answers the sample's question."""
    if sample.task == "choice":
        return read_letter(content, sample.options) == sample.answer
    if sample.task in ("number", "regression"):
        wanted, got = read_number(sample.answer), read_number(content)
        if wanted is not None:
            return got is not None and abs(got - wanted) <= Decimal(str(tolerance))
    # Also for annotated "numbers" that are none in plain notation ("1,000"): equal as text, or wrong.
    return same_text(content, accepted_answers(sample))
