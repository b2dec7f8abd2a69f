"""Scores of stored answers: our strict verdict beside the official rule, without a model. Judged answers are cached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from grpo.benchmarks.answers import Key
from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, StoredAnswer, Verdict
from grpo.benchmarks.rules import answer_text, verdict_of
from grpo.groups import Rollout, Sample
from rewards.builtin.judge import Judge
from rewards.builtin.judge.client import JudgeError

JUDGED_AT_ONCE = 1000
"""Answers handed to the judge together; its own settings say how many requests are under way."""


def score_answers(
    benchmark: Benchmark,
    asked: Iterable[tuple[Sample, str]],
    answers: Mapping[Key, StoredAnswer],
    *,
    num_samples: int = 1,
    has_tags: bool = False,
    judge: Mapping[str, Any] | None = None,
    is_shown: bool = False,
) -> list[ScoredAnswer]:
    """The scores of all that was asked, in order; ValueError if something was not answered yet.

    has_tags: whether the prompt asked for an answer block. judge: the reward `judge`'s arguments beside the prompt.
    """
    wanted = [
        (sample, (sample.id, variant, index)) for sample, variant in asked for index in range(num_samples)
    ]
    if missing := [key for _, key in wanted if key not in answers]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} answers are not there yet (the first is to {missing[0][0]}): "
            "the same command without --score-only gives them"
        )
    pairs = [(sample, answers[key]) for sample, key in wanted]
    scored = [by_rules(benchmark, sample, answer, has_tags=has_tags) for sample, answer in pairs]
    if benchmark.judge is None:
        return scored
    arguments = {"prompt": benchmark.judge.prompt, **(judge or {})}
    return asyncio.run(_judged(benchmark, scored, arguments, has_tags=has_tags, is_shown=is_shown))


def by_rules(benchmark: Benchmark, sample: Sample, answer: StoredAnswer, *, has_tags: bool) -> ScoredAnswer:
    """An answer's scores without a judge; of a judged benchmark, only whether there is something to judge."""
    if benchmark.judge is not None:
        return ScoredAnswer(
            sample=sample, answer=answer, verdict=_unjudged(benchmark, sample, answer, has_tags)
        )
    verdict = verdict_of(benchmark, sample, answer, has_tags=has_tags)
    if verdict is None:
        return ScoredAnswer(sample=sample, answer=answer, verdict=None)
    official = verdict.score
    if benchmark.official is not None:
        text = _official_text(answer, has_tags)
        official = 0.0 if text is None else benchmark.official(sample, text)
    return ScoredAnswer(sample=sample, answer=answer, verdict=verdict, official=official)


def rollout_of(scored: ScoredAnswer) -> Rollout:
    """An answer as the rewards take a completion; without its frames, which are not stored."""
    return Rollout(
        sample=scored.sample,
        clip=None,
        tags=(),
        text=scored.answer.text,
        token_ids=(),
        logprobs=(),
        stopped=scored.answer.finish == "stop",
    )


def _official_text(answer: StoredAnswer, has_tags: bool) -> str | None:
    """What the official rule is given: the answer block, or all where none was asked for.

    None for what is wrong before the rule, which would draw lots or find a letter in the reasoning: a question that
    could not be asked, and a completion that was asked for the one block and has it not.
    """
    return None if answer.finish == "failed" else answer_text(answer.text, has_tags=has_tags)


def _unjudged(benchmark: Benchmark, sample: Sample, answer: StoredAnswer, has_tags: bool) -> Verdict | None:
    """The verdict before the judge was asked: `unjudged` for what is to be judged."""
    if not sample.answer:
        return None
    if answer.finish == "failed":
        return Verdict(score=0.0, outcome="failed")
    assert benchmark.judge is not None
    text = answer_text(answer.text, has_tags=has_tags)
    prediction = None if text is None else benchmark.judge.prediction(sample, text)
    if prediction is None:
        return Verdict.unread(answer.finish)
    return Verdict(score=0.0, outcome="unjudged", answer=prediction)


async def _judged(
    benchmark: Benchmark,
    scored: Sequence[ScoredAnswer],
    arguments: Mapping[str, Any],
    *,
    has_tags: bool,
    is_shown: bool,
) -> list[ScoredAnswer]:
    done: list[ScoredAnswer] = []
    judge = Judge(**arguments)
    try:
        with tqdm(desc="judging", total=len(scored), unit="answer", leave=False, disable=not is_shown) as bar:
            for start in range(0, len(scored), JUDGED_AT_ONCE):
                some = scored[start : start + JUDGED_AT_ONCE]
                marks = await asyncio.gather(*(_mark(judge, each) for each in some))
                done += [
                    _with_mark(benchmark, each, mark, has_tags)
                    for each, mark in zip(some, marks, strict=True)
                ]
                bar.update(len(some))
    finally:
        await judge.close()
    return done


async def _mark(judge: Judge, scored: ScoredAnswer) -> float | None:
    """The judge's score; None for what is not to be judged, and where the judge gave none after its retries."""
    if scored.verdict is None or scored.verdict.outcome != "unjudged":
        return None
    try:
        return await judge.mark(rollout_of(scored), scored.verdict.answer)
    except JudgeError:
        return None


def _with_mark(
    benchmark: Benchmark, scored: ScoredAnswer, mark: float | None, has_tags: bool
) -> ScoredAnswer:
    judging, verdict = benchmark.judge, scored.verdict
    assert judging is not None
    if verdict is None:
        return scored
    if mark is not None:
        verdict = Verdict.graded(judging.score(mark), verdict.answer)
    official = None if mark is None else verdict.score
    if judging.official is not None:
        text = _official_text(scored.answer, has_tags)
        official = 0.0 if text is None else judging.official(scored.sample, text, mark)
    return replace(scored, verdict=verdict, official=official)
