"""Evaluation on held-out questions: one greedy answer each, and one sampled as in training, scored by the rewards.

A further greedy answer about changed frames is judged by accuracy alone, as the run's reward of that name has it: it
shows how many questions are answered without looking at the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, pairwise
from typing import Any

from tqdm import tqdm

from grpo.benchmarks.answers import likeliest, stored
from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.scoring import by_rules, with_marks
from grpo.feed.prompts import Render, make_batch, rollout_seed
from grpo.groups import Batch, Group, LostSample, Prompt, RewardFailure, Rollout, Sample, ScoredGroup
from grpo.media.loader import ClipLoader
from grpo.rollout import Engine, Sampling
from grpo.rollout.counterfactuals import Plan, add_counterfactuals, make_plan
from grpo.run.metrics import Mean, Metrics
from grpo.run.rollout_files import rollout_rows
from rewards import Counterfactual, Frames
from rewards.builtin.accuracy import accuracy
from rewards.scoring.runner import RewardSet

LossesOf = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], list[tuple[float, ...]]]
"""(prompts, each one's candidates) -> the losses of each one's candidates."""


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """This process's share of a named set of held-out samples."""

    name: str
    samples: Sequence[Sample]
    num_blind: int = 0
    """The number of samples, from the first on, that are also asked about changed frames."""
    largest_share: int = 0
    """The number of samples of the process that has most. All have as many batches: they may share an engine."""
    benchmark: Benchmark | None = None
    """The benchmark by whose rules greedy answers are scored too."""
    render: Render | None = None
    """The benchmark's own prompts, whose answers are scored by its rules alone; None: those of training."""
    has_tags: bool = False
    """Whether its prompts ask for the answer in tags."""
    judge: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the benchmark's judge, if it wants one."""
    judge_timeout_s: float | None = None
    """How long the judge of all answers together is waited for."""

    @property
    def candidates(self) -> Callable[[Sample], Sequence[str]] | None:
        """The texts of which the likeliest is the answer; None where answers are generated."""
        return self.benchmark.candidates if self.benchmark and self.render is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of asking held-out questions; `+` joins two results."""

    metrics: Metrics = Metrics()
    lost: tuple[LostSample, ...] = ()
    failures: tuple[RewardFailure, ...] = ()
    answers: tuple[dict[str, Any], ...] = ()
    """The rows of the answers, as `rollout_rows` has them, with their set and pass."""
    scored: tuple[ScoredAnswer, ...] = ()
    """The greedy answers by a benchmark's rules, before a judge."""

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            metrics=self.metrics + other.metrics,
            lost=self.lost + other.lost,
            failures=self.failures + other.failures,
            answers=self.answers + other.answers,
            scored=self.scored + other.scored,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluation of the engine's current weights on held-out sets."""

    sets: Sequence[EvalSet]
    loader: ClipLoader
    render: Render
    rewards: RewardSet
    sampling: Sampling
    """The sampling of training; the greedy pass takes everything but the temperature from it."""
    sampled: bool
    seed: int
    max_prompt_tokens: int
    batch_prompts: int
    counterfactuals: Sequence[Counterfactual] = ()
    """The counterfactuals that the rewards declare; they are sampled beside both passes."""
    blind: Sequence[Frames] = ()
    """The changes of frames that show what is answered without looking at the clip."""
    losses_of: LossesOf | None = None
    """The function that gives the losses of prompts' candidates; None where no set wants the likeliest."""
    tell: Callable[[str], object] = lambda _: None
    """A function that tells the user what went wrong with a judge."""
    is_shown: bool = False
    """Whether this process shows how far it is."""

    def run(self, engine: Engine) -> Evaluation:
        """Ask all sets. The metrics are `eval/<set>/<reward>` of the greedy answers, `eval/<set>/sampled/<reward>` and
        `eval/<set>/<frames>/accuracy`; of a benchmark also `eval/<set>/ours`, `/official`, `/unparsed` and, if it wants
        a judge, `/unjudged`.
        """
        total = sum((1 + (self.sampled and each.render is None)) * len(each.samples) for each in self.sets)
        with tqdm(
            desc="evaluating", total=total, unit="answer", leave=False, disable=not self.is_shown
        ) as bar:
            found = sum((self._ask_set(each, engine, bar) for each in self.sets), Evaluation())
        return found + Evaluation(metrics=Metrics(sums={"eval/reward_failures": len(found.failures)}))

    def _ask_set(self, eval_set: EvalSet, engine: Engine, bar: tqdm) -> Evaluation:
        batches = self._batches(eval_set)
        found = sum((self._ask(eval_set, batch, engine, bar) for batch in batches), Evaluation())
        metrics = benchmark_metrics(eval_set, found.scored, self.tell)
        return replace(found, scored=()) + Evaluation(metrics=metrics)

    def _ask(self, eval_set: EvalSet, batch: Batch, engine: Engine, bar: tqdm) -> Evaluation:
        prefix = f"eval/{eval_set.name}"
        if eval_set.candidates is not None:
            return _lost(prefix, batch) + self._likeliest(eval_set, batch.prompts, bar)
        if eval_set.render is not None:
            asked = engine.generate(batch.prompts, self._greedy, batch.seeds, on_group=lambda _: bar.update())
            return _lost(prefix, batch.answered(asked)) + _by_rules(eval_set, asked)
        batch, groups = self._generate(batch, self._greedy, engine, bar)
        found = self._score(prefix, groups, {"set": eval_set.name, "pass": "greedy"})
        found += _by_rules(eval_set, groups)
        last = batch
        if self.sampled:
            last, others = self._generate(batch, replace(self.sampling, group_size=1), engine, bar)
            found += self._score(f"{prefix}/sampled", others, {"set": eval_set.name, "pass": "sampled"})
        blind_ids = {sample.id for sample in eval_set.samples[: eval_set.num_blind]}
        in_slice = [group.prompt.sample.id in blind_ids for group in groups]
        few, few_seeds = [*compress(groups, in_slice)], [*compress(batch.seeds, in_slice)]
        metrics = self._blind_metrics(prefix, few, few_seeds, engine)
        return found + _lost(prefix, last) + Evaluation(metrics=metrics)

    def _likeliest(self, eval_set: EvalSet, prompts: Sequence[Prompt], bar: tqdm) -> Evaluation:
        """Answer with the candidates of lowest loss."""
        assert eval_set.benchmark and eval_set.candidates and self.losses_of
        losses = self.losses_of(prompts, [eval_set.candidates(prompt.sample) for prompt in prompts])
        bar.update(len(prompts))
        scored = [
            by_rules(eval_set.benchmark, prompt.sample, likeliest(prompt, each), has_tags=False)
            for prompt, each in zip(prompts, losses, strict=True)
        ]
        return Evaluation(scored=tuple(scored))

    @property
    def _greedy(self) -> Sampling:
        return replace(self.sampling, group_size=1, temperature=0.0)

    def _batches(self, eval_set: EvalSet) -> Iterator[Batch]:
        return batches(
            eval_set.samples,
            self.loader,
            eval_set.render or self.render,
            seed=self.seed,
            batch_prompts=self.batch_prompts,
            max_prompt_tokens=self.max_prompt_tokens,
            largest_share=eval_set.largest_share,
        )

    def _generate(
        self, batch: Batch, sampling: Sampling, engine: Engine, bar: tqdm
    ) -> tuple[Batch, list[Group]]:
        """Sample groups of one rollout, with the counterfactuals that the rewards declare; the batch is theirs."""
        groups = engine.generate(batch.prompts, sampling, batch.seeds, on_group=lambda _: bar.update())
        batch = batch.answered(groups)
        return batch, self._compare(groups, batch.seeds, make_plan(self.counterfactuals, sampling), engine)

    def _compare(
        self, groups: Sequence[Group], seeds: Sequence[int], plan: Plan, engine: Engine
    ) -> list[Group]:
        return add_counterfactuals(
            groups,
            seeds,
            plan,
            engine=engine,
            render=self.render,
            max_prompt_tokens=self.max_prompt_tokens,
        )

    def _blind_metrics(
        self, prefix: str, groups: Sequence[Group], seeds: Sequence[int], engine: Engine
    ) -> Metrics:
        """Return `<prefix>/<frames>/accuracy`, and `/drop`: how far that is below the unchanged questions'.

        Questions without a clip have nothing to change and are left out, and so are those that the judge abstains on.
        """
        judge, metrics = accuracy_of(self.rewards), Metrics()
        for group in self._compare(groups, seeds, dict.fromkeys(self.blind, self._greedy), engine):
            (seeing,) = group.rollouts
            for frames, changed in seeing.counterfactuals.items():
                seen, left = judge(seeing), [judge(each) for each in changed]
                drops = [seen - each for each in left if each is not None and seen is not None]
                means = {"accuracy": Mean.of(left), "drop": Mean.of(drops)}
                metrics += Metrics(means={f"{prefix}/{frames}/{name}": mean for name, mean in means.items()})
        return metrics

    def _score(self, prefix: str, groups: Sequence[Group], about: Mapping[str, str]) -> Evaluation:
        found = Evaluation()
        for group, table in zip(groups, self.rewards.score(groups), strict=True):
            means = {name: Mean.of(column) for name, column in table.columns.items()}
            means["length"] = Mean.of(len(rollout.token_ids) for rollout in group.rollouts)
            metrics = Metrics(means={f"{prefix}/{name}": mean for name, mean in means.items()})
            unscored = ScoredGroup(group=group, table=table, advantages=(None,) * len(group.rollouts))
            answers = tuple({**about, **row} for row in rollout_rows(unscored))
            found += Evaluation(metrics=metrics, failures=table.failures, answers=answers)
        return found


def _by_rules(eval_set: EvalSet, groups: Sequence[Group]) -> Evaluation:
    """Return greedy answers as a benchmark's rules have them; nothing without a benchmark."""
    if eval_set.benchmark is None:
        return Evaluation()
    scored = [
        by_rules(
            eval_set.benchmark,
            group.prompt.sample,
            stored(group.prompt, group.rollouts[0], 0),
            has_tags=eval_set.has_tags,
        )
        for group in groups
    ]
    return Evaluation(scored=tuple(scored))


def benchmark_metrics(
    eval_set: EvalSet, scored: Sequence[ScoredAnswer], tell: Callable[[str], object]
) -> Metrics:
    """Return `eval/<set>/ours`, `/official`, `/unparsed` and, of a judge's, `/unjudged`; nothing without a benchmark.

    A question that was lost on the way is not in these means, but in `eval/<set>/lost`. The judge is asked here, with
    the answers of this process.
    """
    if eval_set.benchmark is None:
        return Metrics()
    scored = with_marks(
        eval_set.benchmark,
        scored,
        eval_set.judge,
        has_tags=eval_set.has_tags,
        limit_s=eval_set.judge_timeout_s,
        tell=lambda text: tell(f"{text} (eval/{eval_set.name})"),
    )
    verdicts = [each.verdict for each in scored if each.verdict is not None]
    means = {
        "ours": Mean.of(verdict.score for verdict in verdicts),
        "official": Mean.of(each.official for each in scored),
        "unparsed": Mean.of(float(verdict.outcome in ("unparsed", "truncated")) for verdict in verdicts),
    }
    if eval_set.benchmark.judge is not None:
        means["unjudged"] = Mean.of(float(verdict.outcome == "unjudged") for verdict in verdicts)
    return Metrics(means={f"eval/{eval_set.name}/{name}": mean for name, mean in means.items()})


def batches(
    samples: Sequence[Sample],
    loader: ClipLoader,
    render: Render,
    *,
    seed: int,
    batch_prompts: int,
    max_prompt_tokens: int,
    largest_share: int = 0,
) -> Iterator[Batch]:
    """Yield samples as batches of at most so many prompts, whose clips and the next batch's are decoded ahead.

    largest_share: the samples of the process that has most, which sets the number of batches.
    """
    num_samples = len(samples)
    # All chunks have about one size: a reward may want the clip of another question of the same chunk.
    num_chunks = math.ceil(max(num_samples, largest_share) / batch_prompts)
    ends = [num_samples * index // num_chunks for index in range(num_chunks + 1)] if num_chunks else []
    chunks = [samples[start:end] for start, end in pairwise(ends)]
    for index, chunk in enumerate(chunks):
        for ahead in chunks[index : index + 2]:
            loader.prefetch([source for sample in ahead for source in sample.sources])
        seeds = [rollout_seed(seed, "eval", sample.id) for sample in chunk]
        yield make_batch(chunk, seeds, loader, render, max_prompt_tokens)


def _lost(prefix: str, batch: Batch) -> Evaluation:
    return Evaluation(metrics=Metrics(sums={f"{prefix}/lost": len(batch.lost)}), lost=batch.lost)


def accuracy_of(rewards: RewardSet) -> Callable[[Rollout], float | None]:
    """Return the judge of answers: the run's reward `accuracy` with its arguments, where that is a built-in function of
    one rollout alone; else the strict `accuracy`.
    """
    for reward in rewards.rewards:
        plain = reward.calling == "rollout" and not (reward.has_state or reward.counterfactuals)
        if reward.name == "accuracy" and plain and reward.fn and reward.fn.__module__.startswith("rewards."):
            return partial(reward.fn, **reward.spec.args)
    return accuracy
