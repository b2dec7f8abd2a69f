"""Our strict rules, shared by the benchmarks: an answer is read by the parsers of the rewards, or it is not read.

There is no fallback: no first letter of a sentence, no draw of lots.
"""

from __future__ import annotations

from decimal import Decimal

from grpo.benchmarks.benchmark import Benchmark, StoredAnswer, Verdict
from grpo.groups import Sample
from rewards.builtin.keyframe import length_s, overlap_s
from rewards.builtin.matching import accepted_answers, same_text
from rewards.builtin.moments import answered_span
from rewards.parsing import ANSWER, is_blank, only_block, read_letter, read_number


def answer_text(completion: str, *, has_tags: bool) -> str | None:
    """The part of a completion that rules read: the content of its one answer block.

    has_tags: whether the prompt asked for the block. Then there is no text without it (None); otherwise the whole
    completion is the text.
    """
    block = only_block(completion, ANSWER)
    if block is not None or has_tags:
        return block
    return completion


def strict(sample: Sample, text: str) -> Verdict | None:
    """The verdict by the sample's task; None for a text that can't be read as an answer of that kind.

    A choice is read by `read_letter` and a number by `read_number`; a span is worth its temporal IoU; any other answer
    has to equal an accepted one up to case and white space.
    """
    if is_blank(text):
        return None
    match sample.task:
        case "choice":
            letter = read_letter(text, sample.options)
            return Verdict.graded(float(letter == sample.answer), letter) if letter else None
        case "number" | "regression":
            return _number(sample, text)
        case "span":
            iou, answer = temporal_iou(sample, text), text.strip()
            return None if iou is None else Verdict.graded(iou, answer)
    return Verdict.graded(float(same_text(text, accepted_answers(sample))), text.strip())


def temporal_iou(sample: Sample, text: str) -> float | None:
    """The seconds in both the answered and the right span, over those in either; None if the answer is no span."""
    got, truth = (answered_span(each, sample.num_videos) for each in (text, sample.answer))
    if got is None or truth is None:
        return None
    return overlap_s([got], [truth]) / length_s([got, truth])


def _number(sample: Sample, text: str) -> Verdict | None:
    got, wanted = read_number(text), read_number(sample.answer)
    if wanted is None:
        # Annotated in other words ("1,000"): equal as text, or wrong.
        return Verdict.graded(float(same_text(text, accepted_answers(sample))), text.strip())
    return None if got is None else Verdict.graded(float(got == Decimal(wanted)), str(got))


def verdict_of(
    benchmark: Benchmark, sample: Sample, answer: StoredAnswer, *, has_tags: bool
) -> Verdict | None:
    """Our verdict on a stored answer, without a judge; None where no right answer is published."""
    if not sample.answer:
        return None
    if answer.finish == "failed":
        return Verdict(score=0.0, outcome="failed")
    text = answer_text(answer.text, has_tags=has_tags)
    read = None if text is None else (benchmark.ours or strict)(sample, text)
    return read or Verdict.unread(answer.finish)
