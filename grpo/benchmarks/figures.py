"""A model's figures on a benchmark, from its scored answers: plain values, as JSON takes them."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from grpo.benchmarks.benchmark import OUTCOMES, Benchmark, ScoredAnswer
from grpo.benchmarks.changed import BLIND, PLAIN, ROTATED
from grpo.benchmarks.scoring import rollout_of
from grpo.benchmarks.statistics import calibration_error, interval_of_mean, pass_at_k
from rewards.builtin.keyframe import keyframe_hit, keyframe_iou
from rewards.builtin.moments import annotated_moments, cited_moments

Figures = dict[str, Any]


def figures_of(benchmark: Benchmark, scored: Sequence[ScoredAnswer]) -> Figures:
    """All figures of one model. Answers without a verdict count as `num_unpublished` and in nothing else."""
    plain = [each for each in scored if each.answer.variant == PLAIN]
    judged = [each for each in plain if each.verdict is not None]
    questions = by_question(judged)
    first = [each[0] for each in questions]
    figures: Figures = {
        "num_questions": len(questions),
        "num_unpublished": len(by_question(plain)) - len(questions),
        "num_videos": len({video_of(each) for each in first}),
        **score_figures(questions),
        "outcomes": {outcome: count for outcome in OUTCOMES if (count := _counts(judged)[outcome])},
        "groups": {column: _by_column(questions, column) for column in benchmark.groups},
        "metrics": dict(benchmark.summary(judged)) if benchmark.summary and judged else {},
        "costs": _costs(plain),
        "baselines": _baselines(first),
    }
    if questions and len(questions[0]) > 1:
        figures["samples"] = sample_figures(questions)
    if blind := [each for each in scored if each.answer.variant == BLIND and each.verdict]:
        figures["blind"] = _blind_figures(questions, by_question(blind))
    if any(each.sample.task == "choice" for each in judged):
        figures["letters"] = letter_figures([each for each in scored if each.answer.variant != BLIND])
    if moments := moment_figures(judged):
        figures["moments"] = moments
    return figures


def by_question(scored: Sequence[ScoredAnswer]) -> list[list[ScoredAnswer]]:
    """The answers to each question, which stand together."""
    return [list(answers) for _, answers in groupby(scored, key=lambda each: each.sample.id)]


def score_figures(questions: Sequence[Sequence[ScoredAnswer]]) -> Figures:
    """Our score and the official one with their 95 % intervals; of several answers to a question, their mean."""
    ours = [_mean([_score(each) for each in answers]) for answers in questions]
    clusters = [video_of(answers[0]) for answers in questions]
    found: Figures = {"score": _mean_of_known(ours), "score_interval": interval_of_mean(ours, clusters)}
    left = [
        (_mean(values), cluster)
        for answers, cluster in zip(questions, clusters, strict=True)
        if (values := [each.official for each in answers if each.official is not None])
    ]
    official = [value for value, _ in left]
    # The interval's bounds are those of a share; a scale of 0 to 100 has none.
    is_share = all(0 <= value <= 1 for value in official)
    found["official"] = _mean_of_known(official)
    found["official_interval"] = interval_of_mean(official, [c for _, c in left]) if is_share else None
    found["num_official"] = len(official)
    return found


def video_of(scored: ScoredAnswer) -> str:
    """The cluster of a question: its video, or itself where there is none."""
    source = scored.sample.clip_source
    return (source.video or source.frames[0].rpartition("/")[0]) if source else scored.sample.id


def sample_figures(questions: Sequence[Sequence[ScoredAnswer]]) -> Figures:
    """What n answers to a question show: the majority's score, pass@k, and whether votes are worth what they seem."""
    count = len(questions[0])
    majorities = [majority(answers) for answers in questions]
    rights = [sum(_score(each) >= 1 for each in answers) for answers in questions]
    ks = [k for k in (2**power for power in range(count.bit_length())) if k <= count]
    clusters = [video_of(answers[0]) for answers in questions]
    scores = [score for score, _ in majorities]
    return {
        "num_samples": count,
        "majority": _mean(scores),
        "majority_interval": interval_of_mean(scores, clusters),
        "pass_at_k": {str(k): _mean([pass_at_k(count, right, k) for right in rights]) for k in ks},
        "mean_majority_share": _mean([share for _, share in majorities]),
        "calibration_error": calibration_error([share for _, share in majorities], scores),
    }


def majority(answers: Sequence[ScoredAnswer]) -> tuple[float, float]:
    """The score of the answer that was given most often, and the share of all answers that gave it.

    Of equals the one that was given first; what could not be read has no vote, and (0, 0) is for nothing but that.
    """
    votes = Counter(each.verdict.answer for each in answers if each.verdict and each.verdict.answer)
    if not votes:
        return 0.0, 0.0
    winner, count = votes.most_common(1)[0]
    scores = [_score(each) for each in answers if each.verdict and each.verdict.answer == winner]
    return scores[0], count / len(answers)


def letter_figures(scored: Sequence[ScoredAnswer]) -> Figures:
    """Which letters are answered and right; with rotated options, the score by the right option's place too."""
    choices = [each for each in scored if each.sample.task == "choice" and each.verdict]
    answered = Counter(each.verdict.answer for each in choices if each.verdict)
    letters = string.ascii_uppercase[: max((len(each.sample.options) for each in choices), default=0)]
    by_place = {
        letter: [_score(each) for each in choices if each.sample.answer == letter] for letter in letters
    }
    found: Figures = {
        "answered": {letter: answered[letter] for letter in letters},
        "right": {letter: len(scores) for letter, scores in by_place.items()},
        "score_by_place": {letter: _mean(scores) for letter, scores in by_place.items() if scores},
    }
    if any(each.answer.variant.startswith(ROTATED) for each in choices):
        questions = defaultdict(list)
        for each in choices:
            questions[each.sample.id].append(_score(each))
        found["always_right"] = _mean([float(min(scores) >= 1) for scores in questions.values()])
        found["place_std"] = float(np.std([*found["score_by_place"].values()]))
    return found


def moment_figures(scored: Sequence[ScoredAnswer]) -> Figures:
    """How well cited moments meet annotated spans; empty where no answer to a question with spans cites any."""
    rollouts = [rollout_of(each) for each in scored if annotated_moments(each.sample)]
    if not any(map(cited_moments, rollouts)):
        return {}
    return {
        "num_answers": len(rollouts),
        "cited_frac": _mean([float(bool(cited_moments(each))) for each in rollouts]),
        "hit": _mean_of_known([keyframe_hit(each) for each in rollouts]),
        "iou": _mean_of_known([keyframe_iou(each) for each in rollouts]),
    }


def _by_column(questions: Sequence[Sequence[ScoredAnswer]], column: str) -> Mapping[str, Figures]:
    groups: dict[str, list[Sequence[ScoredAnswer]]] = defaultdict(list)
    for answers in questions:
        groups[str(answers[0].sample.columns.get(column, ""))].append(answers)
    return {
        value: {"num_questions": len(some), **score_figures(some)} for value, some in sorted(groups.items())
    }


def _blind_figures(
    seen: Sequence[Sequence[ScoredAnswer]], blind: Sequence[Sequence[ScoredAnswer]]
) -> Figures:
    """The score about black frames, and how far it is below the same questions' score."""
    score_of = {answers[0].sample.id: _mean([_score(each) for each in answers]) for answers in seen}
    figures = score_figures(blind)
    drops = [score_of[answers[0].sample.id] - _mean([_score(each) for each in answers]) for answers in blind]
    return {"score": figures["score"], "score_interval": figures["score_interval"], "drop": _mean(drops)}


def _baselines(first: Sequence[ScoredAnswer]) -> Figures:
    """What is earned without a model: by one answer to all questions, and by lots among the options."""
    samples = [each.sample for each in first]
    right = Counter(sample.answer for sample in samples)
    if not right:
        return {}
    answer, count = right.most_common(1)[0]
    found: Figures = {"constant": count / len(samples), "constant_answer": answer}
    if all(sample.task == "choice" and sample.options for sample in samples):
        found["chance"] = _mean([1 / len(sample.options) for sample in samples])
    return found


def _costs(plain: Sequence[ScoredAnswer]) -> Figures:
    given = [each.answer for each in plain if each.answer.finish != "failed"]
    return {
        "mean_frames": _mean_of_known(
            [float(sum(map(len, (each.times_s, *each.other_times_s)))) for each in given]
        ),
        "mean_tokens": _mean_of_known([float(each.num_tokens) for each in given]),
        "mean_prompt_tokens": _mean_of_known([float(each.num_prompt_tokens) for each in given]),
    }


def _counts(scored: Sequence[ScoredAnswer]) -> Counter[str]:
    return Counter(each.verdict.outcome for each in scored if each.verdict)


def _score(scored: ScoredAnswer) -> float:
    return scored.verdict.score if scored.verdict else 0.0


def _mean(values: Sequence[float]) -> float:
    # numpy takes ten times as long for a handful of values.
    return sum(values) / len(values)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None for none."""
    numbers = [value for value in values if value is not None]
    return _mean(numbers) if numbers else None


def scores_by_id(scored: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Each question's mean score, of the questions as they are."""
    plain = [each for each in scored if each.answer.variant == PLAIN and each.verdict]
    return {
        answers[0].sample.id: _mean([_score(e) for e in answers]) or 0.0 for answers in by_question(plain)
    }
