"""QaEgo4D with open answers, and as a choice among four (the closed test of GroundVQA).

Open: exact match, corpus BLEU, ROUGE and METEOR of the authors' `eval/eval.py`, which scores only questions that have a
hypothesis; the exact match is one of text, case and all. METEOR needs NLTK's WordNet, which nothing here downloads and
no package that is kept up brings: it is left out, with a line in the log, until `python -m nltk.downloader wordnet` was
run. `METEOR.no_synonyms`, without that stage (equal words, then equal stems), is always there.

Closed: `annotations.QaEgo4D_test_close.json` has three wrong answers a question. Its authors shuffle the options in
five runs, with seeds 0, 1111, 2222, 3333 and 4444, and compare the whole text `(A) answer`; the mean of the five is
reported. The order of their options depends on their loader's workers, so ours, which depend on seed and question, are
others. Their prompt is the input of a T5 that they trained, so a chat model that answers with a letter alone is wrong
to the official rule.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.replies import grouped, lettered, percent
from grpo.benchmarks.rules import answer_text
from grpo.data.fields import LETTERS, get_texts, shown
from grpo.groups import Sample
from rewards.builtin.extras import import_extra

logger = logging.getLogger(__name__)

SOURCES = ("https://github.com/lbaermann/qaego4d",)
SOURCES_CLOSED = (*SOURCES, "https://github.com/Becomebright/GroundVQA", "https://arxiv.org/abs/2312.06505")
SEEDS = (0, 1111, 2222, 3333, 4444)
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def open_official(sample: Sample, text: str) -> float:
    """Exact match of the text, case and all: `On the table.` is not `on the table`."""
    return float(text == sample.answer)


def open_summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """The authors' metrics in percent, over the questions that have an answer."""
    pairs = [
        (answer_text(each.answer.text, has_tags=False) or "", each.sample.answer)
        for each in scored
        if each.answer.finish != "failed"
    ]
    if not pairs:
        return {}
    said, wanted = map(list, zip(*pairs, strict=True))
    bleu = import_extra("sacrebleu.metrics").BLEU().corpus_score(said, [wanted]).score
    return {
        "plain_acc": percent(text == answer for text, answer in pairs),
        "BLEU": bleu,
        **_rouge(pairs),
        **_meteor(pairs),
    }


def _rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean F1, without the stemmer that the reward `rouge` has; `ROUGE` is that of the longest common subsequence."""
    scorer = import_extra("rouge_score.rouge_scorer").RougeScorer(ROUGE_TYPES, use_stemmer=False)
    scores = [scorer.score(answer, text) for text, answer in pairs]
    means = {f"ROUGE.{kind}": percent(each[kind].fmeasure for each in scores) for kind in ROUGE_TYPES}
    return {"ROUGE": means["ROUGE.rougeL"], **means}


def _meteor(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    nltk, tokenize = import_extra("nltk"), import_extra("rouge_score.tokenize").tokenize
    score = import_extra("nltk.translate.meteor_score").meteor_score
    tokens = [(tokenize(answer, None), tokenize(text, None)) for text, answer in pairs]
    no_synonyms = percent(score([answer], text, wordnet=NoWordNet) for answer, text in tokens)
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        logger.warning("no METEOR: it needs WordNet, which `python -m nltk.downloader wordnet` downloads")
        return {"METEOR.no_synonyms": no_synonyms}
    return {
        "METEOR": percent(score([answer], text) for answer, text in tokens),
        "METEOR.no_synonyms": no_synonyms,
    }


class NoWordNet:
    """What takes the place of NLTK's WordNet: no word has synonyms."""

    @staticmethod
    def synsets(_: str) -> list[Any]:
        return []


def shuffled(samples: list[Sample]) -> list[Sample]:
    """Each question as five choices, whose options differ in their order."""
    return [_choice(sample, number, seed) for sample in samples for number, seed in enumerate(SEEDS)]


def _choice(sample: Sample, number: int, seed: int) -> Sample:
    try:
        wrong = get_texts(sample.columns, "wrong_answers")
    except ValueError as error:
        raise ValueError(f"{sample.source}: {error}") from None
    right = sample.answer.strip()
    if not wrong:
        raise ValueError(f"{sample.source}: 'wrong_answers' is empty: {shown(wrong)}")
    options = [right, *wrong]
    random.Random(f"{seed}/{sample.id}").shuffle(options)
    return replace(
        sample,
        id=f"{sample.id}#shuffle{number}",
        task="choice",
        options=tuple(options),
        answer=LETTERS[options.index(right)],
        columns={**sample.columns, "shuffle": seed},
    )


def closed_prompt(sample: Sample) -> str:
    """GroundVQA's input, of which the video's features are the end."""
    choices = " ".join(lettered(sample, "({letter}) {text}"))
    return f"question: {sample.question} choices: {choices}. video: "


def closed_official(sample: Sample, text: str) -> float:
    """Exact match of `(A) text`; a letter alone is wrong."""
    return float(text == lettered(sample, "({letter}) {text}")[LETTERS.index(sample.answer)])


def closed_summary(scored: Sequence[ScoredAnswer]) -> Mapping[str, float]:
    """Mean and standard deviation of the five shuffles' accuracy in percent, by the official rule and by ours."""
    runs = grouped(scored, lambda sample: sample.columns["shuffle"]).values()
    rules: dict[str, Any] = {
        "official": lambda each: each.official or 0.0,
        "ours": lambda each: each.verdict.score if each.verdict else 0.0,
    }
    means = {name: [percent(map(rule, run)) for run in runs] for name, rule in rules.items()}
    return {
        f"{name}_{what}": of(each)
        for name, each in means.items()
        if each
        for what, of in (("mean_of_shuffles", fmean), ("std_of_shuffles", pstdev))
    }


QAEGO4D = Benchmark(
    name="qaego4d",
    reader="qaego4d",
    notes="No official prompt for a model that follows instructions.",
    sources=SOURCES,
    official=open_official,
    summary=open_summary,
)
QAEGO4D_CLOSED = Benchmark(
    name="qaego4d_closed",
    reader="qaego4d",
    sources=SOURCES_CLOSED,
    prepare=shuffled,
    prompt=closed_prompt,
    official=closed_official,
    groups=("shuffle",),
    summary=closed_summary,
)
