"""Held-out questions: one greedy answer each, and one sampled as in training, scored by the run's rewards.

And one greedy answer about changed frames, judged by accuracy alone, as the run's reward of that name has it: how
much of it needs no looking?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, pairwise

from grpo.feed.prompts import Render, make_batch, rollout_seed
from grpo.groups import Batch, Group, LostSample, RewardFailure, Rollout, Sample
from grpo.media.loader import ClipLoader
from grpo.rollout import Engine, Sampling
from grpo.rollout.counterfactuals import Plan, add_counterfactuals, make_plan
from grpo.run.tally import Tally
from rewards import Counterfactual, Frames
from rewards.builtin.accuracy import accuracy
from rewards.scoring.runner import RewardSet


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """A named set of held-out samples: this process's share."""

    name: str
    samples: Sequence[Sample]
    num_blind: int = 0
    """The first so many are asked about changed frames too."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores the engine's current weights on held-out sets."""

    sets: Sequence[EvalSet]
    loader: ClipLoader
    render: Render
    rewards: RewardSet
    sampling: Sampling
    """As in training; the greedy pass takes everything but the temperature from it."""
    sampled: bool
    seed: int
    max_prompt_tokens: int
    batch_prompts: int
    counterfactuals: Sequence[Counterfactual] = ()
    """What the rewards declare; it is sampled beside both passes."""
    blind: Sequence[Frames] = ()
    """How frames are changed to see what is answered without them."""

    def run(self, engine: Engine, tally: Tally) -> tuple[list[LostSample], list[RewardFailure]]:
        """Tally `eval/<set>/<reward>` (greedy), `eval/<set>/sampled/<reward>` and
        `eval/<set>/<frames>/accuracy`; what went wrong is returned.
        """
        lost: list[LostSample] = []
        failures: list[RewardFailure] = []
        greedy = replace(self.sampling, group_size=1, temperature=0.0)
        sampled = replace(self.sampling, group_size=1)
        for eval_set in self.sets:
            prefix = f"eval/{eval_set.name}"
            blind_ids = {sample.id for sample in eval_set.samples[: eval_set.num_blind]}
            for batch in self._batches(eval_set):
                lost += batch.lost
                groups = self._generate(batch, greedy, engine)
                failures += self._score(prefix, groups, tally)
                if self.sampled:
                    others = self._generate(batch, sampled, engine)
                    failures += self._score(f"{prefix}/sampled", others, tally)
                in_slice = [group.prompt.sample.id in blind_ids for group in groups]
                few, few_seeds = [*compress(groups, in_slice)], [*compress(batch.seeds, in_slice)]
                self._tally_blind(prefix, few, few_seeds, engine, tally)
                tally.add(f"{prefix}/lost", len(batch.lost))
        tally.add("eval/reward_failures", len(failures))
        return lost, failures

    def _batches(self, eval_set: EvalSet) -> Iterator[Batch]:
        num_samples = len(eval_set.samples)
        # All of about one size: a reward may want the clip of another question of the same chunk.
        num_chunks = math.ceil(num_samples / self.batch_prompts)
        ends = [num_samples * index // num_chunks for index in range(num_chunks + 1)] if num_chunks else []
        chunks = [eval_set.samples[start:end] for start, end in pairwise(ends)]
        for index, chunk in enumerate(chunks):
            for ahead in chunks[index : index + 2]:
                self.loader.prefetch([sample.clip_source for sample in ahead])
            seeds = [rollout_seed(self.seed, "eval", sample.id) for sample in chunk]
            yield make_batch(chunk, seeds, self.loader, self.render, self.max_prompt_tokens)

    def _generate(self, batch: Batch, sampling: Sampling, engine: Engine) -> list[Group]:
        """Groups of one, with what the rewards compare them with."""
        groups = engine.generate(batch.prompts, sampling, batch.seeds)
        return self._compare(groups, batch.seeds, make_plan(self.counterfactuals, sampling), engine)

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

    def _tally_blind(
        self, prefix: str, groups: Sequence[Group], seeds: Sequence[int], engine: Engine, tally: Tally
    ) -> None:
        """`<prefix>/<frames>/accuracy`, and `/drop`: how far it is below that of the same questions' greedy
        answers.

        Questions without a clip have nothing to change and are left out; so are those that the judge abstains on.
        """
        judge = accuracy_of(self.rewards)
        plan = dict.fromkeys(self.blind, replace(self.sampling, group_size=1, temperature=0.0))
        for group in self._compare(groups, seeds, plan, engine):
            (seeing,) = group.rollouts
            for frames, changed in seeing.counterfactuals.items():
                seen, left = judge(seeing), [judge(each) for each in changed]
                drops = [seen - each for each in left if each is not None and seen is not None]
                tally.mean(f"{prefix}/{frames}/accuracy", left)
                tally.mean(f"{prefix}/{frames}/drop", drops)

    def _score(self, prefix: str, groups: Sequence[Group], tally: Tally) -> list[RewardFailure]:
        failures: list[RewardFailure] = []
        for group, table in zip(groups, self.rewards.score(groups), strict=True):
            failures += table.failures
            for name, column in table.columns.items():
                tally.mean(f"{prefix}/{name}", column)
            tally.mean(f"{prefix}/length", [len(rollout.token_ids) for rollout in group.rollouts])
        return failures


def accuracy_of(rewards: RewardSet) -> Callable[[Rollout], float | None]:
    """What calls an answer right: the run's reward `accuracy` with its arguments, where that is one of the built-in
    functions of one rollout alone; else the strict one.
    """
    for reward in rewards.rewards:
        plain = reward.calling == "rollout" and not (reward.has_state or reward.counterfactuals)
        if reward.name == "accuracy" and plain and reward.fn.__module__.startswith("rewards."):
            return partial(reward.fn, **reward.spec.args)
    return accuracy
