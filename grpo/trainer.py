"""The step of GRPO: `Loop.run` -> `GRPOTrainer.step` -> `Learner.update`, each readable alone. Start with `step`.

What this GRPO is, unless a config says otherwise; each is made at a line of the files that `step` names:

- A question is answered G times, and an answer is compared with its siblings alone: there is no value model.
- A completion's total is the plain weighted sum of its rewards, of which one that abstains adds nothing. A completion
  on which a reward that counts failed, or on which all abstained, has no total: it takes no part in its group's mean
  and std, nor in the update.
- Its advantage is its total less the group's mean, over the group's (population) std.
- A group whose totals are all equal teaches nothing: its advantages are exactly 0, it is left out of the passes but for
  one without gradient, which the policy's figures need, and no other question takes its place. It counts in what the
  loss is divided by.
- The loss is DAPO's: the mean over all completion tokens of the step, in all processes, with the ratio clipped to
  1 +- 0.2.
- There is one update per batch. Completions are of the weights that they train, so all ratios are 1, nothing is
  clipped, and the logged loss says nothing of progress: it only tells whether longer completions have the lower
  advantages. Its gradient is what moves the weights.
- There is no KL term and so no reference, and no entropy bonus.
- Engine and learner compute slightly different probabilities. A token is weighted by the ratio of the two, cut at 3.
- A completion that was cut off at the token limit is scored and trained on as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator
from accelerate.utils import gather_object

from grpo.config.schema import Config
from grpo.feed.dynamic_sampling import Sampled
from grpo.feed.prompts import Feed
from grpo.groups import RewardTable, ScoredGroup
from grpo.learner.advantages import score_groups
from grpo.learner.balance import balanced
from grpo.learner.guards import Guard
from grpo.learner.launching import compute_dtype
from grpo.learner.losses import step_counts
from grpo.learner.reference_reward import add_reference_parts
from grpo.learner.update import Learner, UpdateResult
from grpo.packing import PackedRow, pack, segments_of
from grpo.rollout import Engine, Sampling
from grpo.rollout.given import follow
from grpo.rollout.partial import PartialRollouts
from grpo.rollout.sampler import Sampler, in_any_process
from grpo.rollout.sync_proof import gap_of
from grpo.run.recorder import Recorder
from rewards.scoring.runner import RewardSet


class GRPOTrainer:
    """The steps of GRPO over the parts of a run, which `startup/` puts together."""

    def __init__(
        self,
        config: Config,
        *,
        accelerator: Accelerator,
        learner: Learner,
        engine: Engine,
        sampling: Sampling,
        feed: Feed,
        rewards: RewardSet,
        guard: Guard,
        recorder: Recorder,
        partial_rollouts: PartialRollouts | None = None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.feed, self.engine, self.sampling = feed, engine, sampling
        self.rewards, self.learner = rewards, learner
        self.guard, self.recorder = guard, recorder
        by_group = partial(
            score_groups,
            scale=config.advantages.scale,
            baseline=config.advantages.baseline,
            min_std=config.advantages.min_std,
            normalised=rewards.normalise,
            mask_truncated=config.loss.mask_truncated_completions,
        )
        # Completions that records give (`loss.type=nll`) are followed, whatever their rewards.
        self.score = by_group if config.loss.is_sampled else follow
        self.sampler = Sampler(
            config,
            feed=feed,
            engine=engine,
            sampling=sampling,
            rewards=rewards,
            recorder=recorder,
            score=self.score,
            gap_of=partial(gap_of, learner.policy, dtype=compute_dtype()),
            partial=partial_rollouts,
        )

    def step(self, step: int) -> None:
        """Sample a group per question, score it, and make the completions above their group's mean more likely."""
        config, recorder = self.config, self.recorder
        # G completions of each question, with their rewards; sampled during the step before with `rollout.overlap`.
        sampled = self.sampler.take(step)
        # Other questions in the place of flat groups: none, by default (`dynamic_sampling`).
        sampled = self.sampler.replace_flat(sampled, step)
        # Nothing is sampled from here on (the reference's pass needs the engine's memory too) but the next step, with
        # `rollout.overlap`.
        self.sampler.go_on(step)
        # A reference may add to the totals, or take off; by default there is none.
        tables = self._with_reference(sampled) if config.loss.reference_parts else sampled.tables
        # (total - mean) / (std + 1e-4) in each group; 0 where all of its totals are equal, None without a total.
        scored = self.score(sampled.groups, tables, gather=gather_object)
        # What the loss is divided by: the tokens of the whole step, over all processes, flat groups included.
        counts = step_counts(scored, max_new_tokens=self.sampling.max_new_tokens, gather=gather_object)
        # Flat groups are left out: they have no gradient, unless a KL or entropy term gives them one.
        rows = self._rows(scored)
        # All that is not trained on is read without a gradient: the policy's figures are those of all completions.
        watched = self._rows(scored, trained=False)
        with recorder.timed("time/update"):
            # One update (`num_iterations`), by the clipped loss with importance weights (`losses.row_loss`).
            result = self.learner.update(rows, counts, step, watched=watched)
        self._record_update(step, result, rows)
        recorder.write_groups(step, scored, sampled.batch.lost, result.logps)
        # What is sampled next is of the weights that were just trained.
        self.sampler.sync(step)

    def _rows(self, scored: Sequence[ScoredGroup], *, trained: bool = True) -> list[PackedRow]:
        """Pack the completions that are trained on, or the others."""
        tokens_per_row, drop_flat = self.config.optim.tokens_per_row, not self.config.loss.needs_flat_groups
        segments = segments_of(scored, tokens_per_row=tokens_per_row, drop_flat=drop_flat, trained=trained)
        # Processes exchange work until all have about as many tokens.
        segments = balanced(segments, self.accelerator, self.learner.split)
        return pack(segments, self.learner.policy.family, tokens_per_row=tokens_per_row)

    def _with_reference(self, sampled: Sampled) -> Sequence[RewardTable]:
        """Return the reward tables with what the reference says of the completions added to the totals."""
        family, reference_logps = self.learner.policy.family, self.learner.reference_logps_of_own
        tables, metrics = add_reference_parts(
            sampled.groups, sampled.tables, reference_logps, self.config.loss, family
        )
        self.recorder.add(metrics)
        return tables

    def _record_update(self, step: int, result: UpdateResult, rows: Sequence[PackedRow]) -> None:
        """Record the update's figures, the rows that it was skipped for, and gradients much larger than usual."""
        self.recorder.add(result.metrics)
        is_blamed = in_any_process(bool(result.bad_rows))
        # Of processes that share their rows, one speaks of them.
        told = rows if self.learner.split.leads else []
        self.recorder.append_failures(self.guard.watch(step, result, told, is_blamed=is_blamed))
