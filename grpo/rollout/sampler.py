"""The sampling of a run's steps: questions of the feed, completions of the engine, and what the rewards say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accelerate.utils import gather_object

from grpo.config.schema import Config
from grpo.feed.dynamic_sampling import Sampled, means_of
from grpo.feed.prompts import Feed
from grpo.groups import Batch, Group, RewardTable, ScoredGroup
from grpo.rollout import Engine, OnGroup, Sampling
from grpo.rollout.ahead import Ahead, of_version
from grpo.rollout.counterfactuals import add_counterfactuals, make_plan
from grpo.rollout.partial import PartialRollouts
from grpo.rollout.sync_proof import is_due
from grpo.run.metrics import Mean, Metrics
from grpo.run.recorder import VERSION_GAP, Recorder
from rewards.scoring.runner import RewardSet

Score = Callable[[Sequence[Group], Sequence[RewardTable]], list[ScoredGroup]]


class Sampler:
    """The sampling of one process's steps."""

    def __init__(
        self,
        config: Config,
        *,
        feed: Feed,
        engine: Engine,
        sampling: Sampling,
        rewards: RewardSet,
        recorder: Recorder,
        score: Score,
        gap_of: Callable[[Group], float],
        partial: PartialRollouts | None = None,
    ) -> None:
        """Make a sampler.

        score: gives groups their advantages. gap_of: returns the mean difference of the log-probs that the policy
        computes of a group to the engine's. partial: samples completions over several steps; None: each in one.
        """
        self.config, self.feed, self.engine, self.sampling = config, feed, engine, sampling
        self.rewards, self.recorder, self.score, self.gap_of = rewards, recorder, score, gap_of
        self.plan = make_plan(rewards.counterfactuals, sampling)
        self.ahead = Ahead(self._of_feed, is_on=config.rollout.overlap)
        # Groups that are sampled ahead have their prompts made by then.
        self.prompts = Ahead(self._prompts, is_on=not config.rollout.overlap)
        self.partial = partial
        self.version = 0
        """The number of steps that the engine's weights have behind them."""

    def take(self, step: int) -> Sampled:
        """Return a step's groups with their rewards: sampled now or, with `rollout.overlap`, during the step before."""
        sampled = self._remembered(self.ahead.take(step), step)
        if self.partial is not None:
            waits = {"groups/unfinished": len(self.partial.begun)}
            self.recorder.add(
                Metrics(sums=waits | {"groups/finished_at_once": self.partial.num_finished_at_once})
            )
        return sampled

    def replace_flat(self, sampled: Sampled, step: int) -> Sampled:
        """Replace questions whose groups have no signal by others, as often as allowed (`dynamic_sampling.py`)."""
        for attempt in range(1, self.config.dynamic_sampling.max_resample_times + 1):
            flat = self._flat_places(sampled)
            # All processes go on, or none does.
            if not in_any_process(bool(flat)):
                break
            with self.recorder.timed("time/data"):
                batch = self._prepared(self.feed.others(step, attempt, flat), step)
            self.recorder.add(Metrics(sums={"groups/resampled": len(flat)}))
            others = self._remembered(self._sample(batch, step), step)
            sampled = sampled.with_others(others, but=self._flat_places(others))
        return sampled

    def go_on(self, step: int) -> None:
        """Let the engine sleep while this step is learned, and make the next one's prompts meanwhile.

        With `rollout.overlap` it samples the next step's groups instead.
        """
        self.engine.sleep()
        if not self.config.rollout.overlap:
            if step < self.config.num_steps:
                self.prompts.start(step + 1)
            return
        # Behind the last step too, from whose checkpoint a longer run may go on.
        if step < self.config.num_steps or self.config.checkpoint.every_steps:
            self.ahead.start(step + 1)
            self._measure_gap(step)

    def sync(self, step: int) -> None:
        """Give the engine the weights of a step, when all that older ones are to sample is there."""
        if self.config.rollout.overlap:
            with self.recorder.timed("time/rollout_wait"):
                self.ahead.wait()
        with self.recorder.timed("time/sync"):
            self.engine.sync()
        self.version = step

    def settle(self, is_stopping: Callable[[], bool]) -> None:
        """Wait for the next step's prompts, unless a run that is asked to stop has no time for it.

        Their error is that of the next step: this one is recorded and saved first.
        """
        # What is counted of clips depends on the order in which they are asked for, and an evaluation asks for others.
        with self.recorder.timed("time/data"):
            self.prompts.settle(is_stopping)

    def _of_feed(self, step: int, on_first: OnGroup) -> Sampled:
        """Sample the groups of a step's questions, in any thread, and without a word to other processes."""
        with self.recorder.timed("time/data"):
            batch = self.prompts.take(step)
        return self._sample(batch, step, on_first)

    def _prompts(self, step: int, _: OnGroup) -> Batch:
        return self._prepared(self.feed.batch(step), step)

    def _prepared(self, batch: Batch, step: int) -> Batch:
        """Return a batch whose prompts' inputs the engine is about to make."""
        self.engine.prepare(batch.prompts, step)
        return batch

    def _sample(self, batch: Batch, step: int, on_first: OnGroup = lambda _: None) -> Sampled:
        """Sample a group of completions for each question of a batch, and score it.

        on_first: told of the first question's group as soon as it is complete.
        """
        scoring = self.rewards.scoring(step)

        def tell(group: Group) -> None:
            scoring.add(group)
            if group.prompt is batch.prompts[0]:
                on_first(group)

        with self.recorder.timed("time/rollout"):
            if self.partial is None:
                groups = self.engine.generate(batch.prompts, self.sampling, batch.seeds, on_group=tell)
                # All of them, but for those that no server gave.
                batch = batch.answered(groups)
            else:
                batch, groups = self.partial.sample(
                    self.engine, batch, step, self.version, on_group=scoring.add, on_first=on_first
                )
            # Completions that some rewards compare with: sampled beside the groups, and never trained on.
            groups = add_counterfactuals(
                groups,
                batch.seeds,
                self.plan,
                engine=self.engine,
                render=self.feed.render,
                max_prompt_tokens=self.feed.max_prompt_tokens,
            )
        if self.config.rollout.overlap and self.partial is None:
            groups = [of_version(group, self.version) for group in groups]
        with self.recorder.timed("time/reward"):
            tables = scoring.tables(groups)
        return Sampled(batch, groups, tables)

    def _remembered(self, sampled: Sampled, step: int) -> Sampled:
        """Return groups, with their questions' difficulty in the memory where there is one."""
        if (memory := self.feed.memory) is not None:
            means = means_of(sampled.groups, sampled.tables, memory.config.reward)
            for part in gather_object([means]):
                memory.record(step, part)
            self.recorder.add(Metrics(maxima={"groups/left_out": memory.num_left_out(step)}))
        return sampled

    def _flat_places(self, sampled: Sampled) -> list[int]:
        scored = self.score(sampled.groups, sampled.tables)
        return sampled.flat_places([each.has_signal for each in scored])

    def _measure_gap(self, step: int) -> None:
        """Compare a group that is sampled ahead with the policy, which still has the weights that sample it."""
        if not (self.recorder.max_gap and is_due(step, self.config.rollout.prove_sync_every)):
            return
        group = self.ahead.first_group()
        # All processes make the pass, or none does.
        if not in_any_process(group is None) and group is not None:
            self.recorder.add(Metrics(means={VERSION_GAP: Mean(self.gap_of(group), 1)}))

    def close(self) -> None:
        self.ahead.close()
        self.prompts.close()


def in_any_process(is_so: bool) -> bool:
    """Return whether something is so in any process."""
    return any(gather_object([is_so]))
