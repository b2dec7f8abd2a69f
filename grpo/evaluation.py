"""Held-out questions: one greedy answer each, and one sampled as in training, scored by the run's rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from grpo.feed import Batch, LostSample, Render, make_batch, rollout_seed
from grpo.groups import Group, Sample
from grpo.media.loader import ClipLoader
from grpo.rollout import Engine, Sampling
from grpo.tally import Tally
from rewards.runner import RewardSet
from rewards.specs import RewardFailure

BATCH_PROMPTS = 128


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """A named set of held-out samples: this process's share."""

    name: str
    samples: Sequence[Sample]


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

    def run(self, engine: Engine, tally: Tally) -> tuple[list[LostSample], list[RewardFailure]]:
        """Tally `eval/<set>/<reward>` (greedy) and `eval/<set>/sampled/<reward>`; what went wrong is returned."""
        lost: list[LostSample] = []
        failures: list[RewardFailure] = []
        greedy = replace(self.sampling, group_size=1, temperature=0.0)
        sampled = replace(self.sampling, group_size=1)
        for eval_set in self.sets:
            for batch in self._batches(eval_set):
                lost += batch.lost
                prefix = f"eval/{eval_set.name}"
                groups = engine.generate(batch.prompts, greedy, batch.seeds)
                failures += self._score(prefix, groups, tally)
                if self.sampled:
                    groups = engine.generate(batch.prompts, sampled, batch.seeds)
                    failures += self._score(f"{prefix}/sampled", groups, tally)
                tally.add(f"{prefix}/lost", len(batch.lost))
        tally.add("eval/reward_failures", len(failures))
        return lost, failures

    def _batches(self, eval_set: EvalSet) -> Iterator[Batch]:
        chunks = [
            eval_set.samples[start : start + BATCH_PROMPTS]
            for start in range(0, len(eval_set.samples), BATCH_PROMPTS)
        ]
        for index, chunk in enumerate(chunks):
            for ahead in chunks[index : index + 2]:
                self.loader.prefetch(ahead)
            seeds = [rollout_seed(self.seed, "eval", sample.id) for sample in chunk]
            yield make_batch(chunk, seeds, self.loader, self.render, self.max_prompt_tokens)

    def _score(self, prefix: str, groups: Sequence[Group], tally: Tally) -> list[RewardFailure]:
        failures: list[RewardFailure] = []
        for group, table in zip(groups, self.rewards.score(groups), strict=True):
            failures += table.failures
            for name, column in table.columns.items():
                tally.mean(f"{prefix}/{name}", column)
            tally.mean(f"{prefix}/length", [len(rollout.token_ids) for rollout in group.rollouts])
        return failures
