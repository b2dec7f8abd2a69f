"""What a benchmark is to the rest of the program: its questions, its prompt, its rules and its files.

A benchmark's own file (`grpo/benchmarks/NAME.py`) fills in one `Benchmark`; everything else (asking, storing, means,
intervals, tables, pages) is the same for all, and works on the three types beside it: a `StoredAnswer` is what a model
said, a `Verdict` what our strict rule says of it, and a `ScoredAnswer` all that is known about one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from grpo.data.records import Reader
from grpo.groups import Sample

Outcome = Literal["right", "partial", "wrong", "unparsed", "truncated", "failed", "unjudged"]
"""What became of a question. `right` has score 1, `partial` a score between 0 and 1 of a graded metric, and all others
score 0: `wrong` was read and is wrong; `unparsed` ended by itself and can't be read; `truncated` can't be read and was
cut off at the token limit; `failed` has no answer, since its clip or its prompt could not be made; `unjudged` has an
answer that the judge gave no score for. They are counted apart, and all are in the denominator."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAnswer:
    """One answer of a model as it was given, before any score: a line of an answers file."""

    sample_id: str
    index: int
    """The answer's number among those sampled of its question, from 0."""
    text: str
    """The completion as the engine returned it; the reason where the question failed."""
    finish: Literal["stop", "length", "failed"]
    """Whether it ended by itself or at the token limit; `failed`: the question could not be asked."""
    variant: str = ""
    """What was changed about the question: empty, `blind` (black frames) or `rotated/K` (options moved K places)."""
    video: str = ""
    """The file or folder that the clip is from, by which intervals are clustered; empty for a text alone."""
    times_s: tuple[float, ...] = ()
    """The times of the frames that the model saw, in seconds from the clip's start; of several media, of the one whose
    times are meant, the first video."""
    other_times_s: tuple[tuple[float, ...], ...] = ()
    """The same of each of the other media, in their order."""
    num_tokens: int = 0
    """The tokens of the answer."""
    num_prompt_tokens: int = 0
    prompt_hash: str = ""
    """A digest of the prompt's text as the model got it, chat template included."""
    losses: tuple[float, ...] = ()
    """The mean negative log-prob of each candidate, where a question is answered by the likeliest of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a rule says about an answer."""

    score: float
    """The answer's worth from 0 to 1; 0 for all that is neither right nor partial."""
    outcome: Outcome
    answer: str = ""
    """What was read as the answer, for tables: the letter, the number, the words."""

    @classmethod
    def graded(cls, score: float, answer: str = "") -> Verdict:
        """The verdict on an answer that was read: right at 1, wrong at 0, partial between."""
        return cls(
            score=score, outcome="right" if score >= 1 else "partial" if score > 0 else "wrong", answer=answer
        )

    @classmethod
    def unread(cls, finish: str = "stop") -> Verdict:
        """The verdict on an answer that can't be read."""
        return cls(score=0.0, outcome="truncated" if finish == "length" else "unparsed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredAnswer:
    """An answer with its question and scores, as summaries and submissions take it."""

    sample: Sample
    """The question as it was asked: of a variant, the changed one."""
    answer: StoredAnswer
    verdict: Verdict | None
    """Ours; None where the right answer is not published (`Sample.answer` is empty)."""
    official: float | None = None
    """The official rule's score on the official scale; None where it leaves the answer out, or there is none."""


Ours = Callable[[Sample, str], Verdict | None]
"""(question, answer's text) -> verdict; None: it can't be read, and the finish reason says which way."""
Summary = Callable[[Sequence[ScoredAnswer]], Mapping[str, float]]
Submission = Callable[[Sequence[ScoredAnswer]], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How a benchmark uses a judge model; endpoint, model and cache are settings of an evaluation."""

    prompt: str
    """A prompt of `rewards/builtin/judge/prompts`, or a file: text, scale and pattern of the score."""
    prediction: Callable[[Sample, str], str | None] = lambda _, text: text.strip() or None
    """What the judge is shown of an answer's text; None: there is nothing to judge, and it is unparsed."""
    score: Callable[[float], float] = lambda value: value
    """Our score from the judge's, which is scaled to 0..1: a threshold where success is a mark of 4."""
    official: Callable[[Sample, str, float | None], float | None] | None = None
    """(question, answer's text, the judge's 0..1 or None if it gave none) -> the official score, on its own scale, with
    shortcuts past the judge and known mistakes; None where the official rule drops the item."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: a reader and what is official about it.

    Rules are functions of the question and the answer's text alone, so that stored answers are scored again without a
    model. The text is the whole completion under the official prompt, and the content of the one answer block where the
    completion has exactly one; under the think prompt a completion without such a block is unparsed before any rule.
    """

    name: str
    reader: str | Reader
    """A key of `grpo.data.FORMATS`; or a reader of its own, where other samples are evaluated than trained on, such as
    questions whose answer is not published: their `answer` is empty, they are asked, and only a submission has them."""
    notes: str = ""
    """What one has to know beside the number, such as what the official code does otherwise than its paper."""
    sources: tuple[str, ...] = ()
    """URLs of paper, code and data."""
    files: str = ""
    """Where the questions are several files, the pattern of these in a folder that is given in the place of a file."""
    prepare: Callable[[list[Sample]], list[Sample]] = lambda samples: samples
    """Which questions are asked of those read, in what form: a published subset, or five shuffles of the options, each
    a sample with an id of its own (`ID#shuffle3`) and what `summary` needs to know in its columns."""
    prompt: Callable[[Sample], str] | None = None
    """The official prompt: the user's turn after the clip, byte for byte. None: there is no official one, and the plain
    prompt for direct answers (`prompts.direct`) is asked."""
    system: str | None = None
    """The official system turn; None: the model's own."""
    candidates: Callable[[Sample], tuple[str, ...]] | None = None
    """The completions whose likelihoods decide where the official rule is the lowest loss; that of option B is second.
    The stored answer is then the letter of the likeliest."""
    ours: Ours | None = None
    """Our strict rule; None: by the sample's task (`rules.strict`), or the judge."""
    official: Callable[[Sample, str], float | None] | None = None
    """The official rule as its code has it, known mistakes included, on the official scale; None where it leaves the
    answer out. No function: it is ours."""
    judge: Judging | None = None
    groups: tuple[str, ...] = ()
    """The columns by whose values the score is broken down: domain, category, type."""
    summary: Summary | None = None
    """Official metrics beyond the mean of `official` (mIoU, R@1, a mean of task means, shuffles), by their names."""
    submission: Submission | None = None
    """The official submission: file name -> content, from the first answer to each question."""
