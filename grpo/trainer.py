"""GRPO, the loop: `run` -> `step` -> `Learner.update`, each readable alone. Start with `step`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from grpo.config.schema import Config
from grpo.evaluation import Evaluator
from grpo.feed.dynamic_sampling import Sampled, means_of
from grpo.feed.prompts import Feed
from grpo.groups import Batch, Group, LostSample, RewardFailure, RewardTable, ScoredGroup
from grpo.learner.advantages import score_groups
from grpo.learner.balance import balanced
from grpo.learner.guards import Guard
from grpo.learner.kl_reward import subtract_divergences
from grpo.learner.launching import compute_dtype
from grpo.learner.losses import StepCounts
from grpo.learner.update import Learner
from grpo.media.loader import MediaCounters
from grpo.packing import pack, segments_of
from grpo.policy.model import Policy
from grpo.policy.vision_features import FeatureCounters
from grpo.rollout import Engine, Sampling
from grpo.rollout.counterfactuals import add_counterfactuals, make_plan
from grpo.run import checkpoint
from grpo.run.curves import draw_curves
from grpo.run.folder import RunDir, rollout_rows
from grpo.run.tally import Tally
from rewards.scoring.compose import gates_open
from rewards.scoring.runner import RewardSet
from rewards.scoring.specs import RewardSpec

MAX_LOST_STEPS = 3
"""Steps in a row without a single usable prompt: something is wrong with all of the data, not with a clip."""


class GRPOTrainer:
    def __init__(
        self,
        config: Config,
        *,
        accelerator: Accelerator,
        policy: Policy,
        learner: Learner,
        engine: Engine,
        sampling: Sampling,
        feed: Feed,
        rewards: RewardSet,
        evaluator: Evaluator,
        run_dir: RunDir,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.policy, self.learner, self.engine = policy, learner, engine
        self.feed, self.rewards, self.evaluator, self.run_dir = feed, rewards, evaluator, run_dir
        self.sampling = sampling
        self.counterfactual_plan = make_plan(rewards.counterfactuals, self.sampling)
        # From nought: the first row counts the clips that the start looked at, too.
        self.media_counters, self.feature_counters = MediaCounters(), FeatureCounters()
        self.guard = Guard(
            run_dir.bad_rows,
            max_skipped=config.optim.max_skipped_updates,
            spike_factor=config.optim.spike_factor,
            process=accelerator.process_index,
        )
        accelerator.register_for_checkpointing(self.guard)
        self.lost_steps = 0
        self.num_reward_deaths = 0
        self.reward_failures: list[dict[str, Any]] = []  # of the latest step, in all processes

    def step(self, step: int, tally: Tally) -> None:
        """Sample a group per question, score it, and move the policy towards its better half."""
        with tally.timed("time/data"):
            batch = self.feed.batch(step)
        sampled = self._sample(batch, step, tally)
        sampled = self._resample_flat(sampled, step, tally)
        groups, tables = sampled.groups, sampled.tables
        if self.config.loss.kl_in_reward:
            tables = self._less_kl(groups, tables, tally)
        scored = score_groups(
            groups,
            tables,
            scale=self.config.advantages.scale,
            baseline=self.config.advantages.baseline,
            normalised=self.rewards.normalise,
            mask_truncated=self.config.loss.mask_truncated_completions,
            gather=gather_object,
        )
        tokens_per_row = self.config.optim.tokens_per_row
        drop_flat = not self.config.loss.needs_flat_groups
        segments = segments_of(scored, tokens_per_row=tokens_per_row, drop_flat=drop_flat)
        segments = balanced(segments, self.accelerator)
        rows = pack(segments, self.policy.family, tokens_per_row=tokens_per_row)
        with tally.timed("time/update"):
            self.engine.sleep()
            outcome = self.learner.update(rows, self._step_counts(scored), step, tally)
            self.engine.wake()
        with tally.timed("time/sync"):
            self.engine.sync()
        is_blamed = any(gather_object([len(outcome.bad_rows)]))
        self._append_failures(self.guard.watch(step, outcome, rows, is_blamed=is_blamed))
        failures = [failure for table in tables for failure in table.failures]
        self._record(step, scored, sampled.batch.lost, failures, tally)

    def _sample(self, batch: Batch, step: int, tally: Tally) -> Sampled:
        """A group of completions per question, and what the rewards say about it."""
        scoring = self.rewards.scoring(step)
        with tally.timed("time/rollout"):
            groups = self.engine.generate(batch.prompts, self.sampling, batch.seeds, on_group=scoring.add)
            groups = self._with_counterfactuals(groups, batch.seeds)
        with tally.timed("time/reward"):
            tables = scoring.tables(groups)
        if (memory := self.feed.memory) is not None:
            for part in gather_object([means_of(groups, tables, memory.config.reward)]):
                memory.record(step, part)
            tally.highest("groups/left_out", memory.num_left_out(step))
        return Sampled(batch, groups, tables)

    def _resample_flat(self, sampled: Sampled, step: int, tally: Tally) -> Sampled:
        """Other questions in the place of those without signal, as often as allowed (`dynamic_sampling.py`)."""
        for attempt in range(1, self.config.dynamic_sampling.max_resample_times + 1):
            flat = sampled.flat_places
            if not any(gather_object([len(flat)])):  # all processes go on, or none does
                break
            with tally.timed("time/data"):
                batch = self.feed.others(step, attempt, flat)
            tally.add("groups/resampled", len(flat))
            sampled = sampled.with_others(self._sample(batch, step, tally))
        return sampled

    def _with_counterfactuals(self, groups: Sequence[Group], seeds: Sequence[int]) -> list[Group]:
        """What rewards compare with, sampled beside the groups and never trained on."""
        return add_counterfactuals(
            groups,
            seeds,
            self.counterfactual_plan,
            engine=self.engine,
            render=self.feed.render,
            max_prompt_tokens=self.feed.max_prompt_tokens,
        )

    def _less_kl(
        self, groups: Sequence[Group], tables: Sequence[RewardTable], tally: Tally
    ) -> list[RewardTable]:
        return subtract_divergences(
            groups,
            tables,
            self.learner.reference_logps,
            self.config.loss,
            self.policy.family,
            tally,
        )

    def run(self) -> None:
        """Train from the latest checkpoint, or from the start, to the last step; then save the model."""
        config, bar = self.config, None
        first = checkpoint.restore(self.run_dir.checkpoints, self.accelerator) + 1
        if self.accelerator.is_main_process:
            if first > 1:
                print(f"resuming after step {first - 1}", flush=True)
            self.run_dir.forget_after(first - 1 if first > 1 else -1)
            bar = tqdm(total=config.num_steps, initial=first - 1, desc="training", unit="step", smoothing=0.1)
        self.engine.sync()  # it has loaded the model's folder: not what was resumed, nor what 4 bits made of it
        if first == 1:
            self._finish_step(0, Tally(), bar)
        for step in range(first, config.num_steps + 1):
            tally = Tally()
            with tally.timed("time/step"):
                self.step(step, tally)
            self._finish_step(step, tally, bar)
            every = config.checkpoint.every_steps
            if every and (step % every == 0 or step == config.num_steps):
                checkpoint.save(self.run_dir.checkpoints, step, self.accelerator, keep=config.checkpoint.keep)
        checkpoint.save_final(
            self.run_dir.final,
            self.policy,
            dtype=compute_dtype(),
            writes=self.accelerator.is_main_process,
        )
        if self.accelerator.is_main_process:
            draw_curves(self.run_dir.metrics(), self.run_dir.path / "curves.png")
        if bar is not None:
            bar.close()

    def _finish_step(self, step: int, tally: Tally, bar: tqdm | None) -> None:
        """Evaluate where it is due, write the step's row of metrics, and stop the run if a figure is wrong."""
        every = self.config.eval.every_steps
        if every and self.evaluator.sets and (step % every == 0 or step == self.config.num_steps):
            with tally.timed("time/eval"):
                lost, failures = self.evaluator.run(self.engine, tally)
            self._write_failures(step, lost, failures)
        self._tally_media(tally)
        row = tally.reduced(lambda part: gather_object([part]))
        if self.accelerator.is_main_process and row:
            self.run_dir.append_metrics({"step": step, **row})
        if bar is not None:
            bar.update(step - bar.n)
            bar.set_postfix_str(progress(row))
            if evaluated := {key: value for key, value in row.items() if key.startswith("eval/")}:
                bar.write(f"step {step}: " + summary(evaluated))
        self._check(step, row)

    def _tally_media(self, tally: Tally) -> None:
        counters = self.feed.loader.counters()
        for key, count in asdict(counters - self.media_counters).items():
            tally.add(f"media/{key}", count)
        tally.highest("media/kept_gib", self.feed.loader.memory.num_bytes / 2**30)
        if (features := self.policy.feature_cache) is not None:
            tally.add("media/features_computed", features.counters.computed - self.feature_counters.computed)
            tally.add("media/features_reused", features.counters.reused - self.feature_counters.reused)
            self.feature_counters = replace(features.counters)
        self.media_counters = counters

    def _record(
        self,
        step: int,
        scored: Sequence[ScoredGroup],
        lost: Sequence[LostSample],
        failures: Sequence[RewardFailure],
        tally: Tally,
    ) -> None:
        """The step's figures, its rollouts and what went wrong."""
        tally_groups(scored, tally, self.rewards.specs)
        for name, seconds in self.rewards.seconds.items():
            tally.highest(f"time/rewards/{name}", seconds)
        tally.add("groups/lost", len(lost))
        tally_failures(scored, failures, tally)
        tally.add("rewards/process_deaths", self.rewards.num_deaths - self.num_reward_deaths)
        self.num_reward_deaths = self.rewards.num_deaths
        self.reward_failures = self._write_failures(step, lost, failures)
        every = self.config.log.rollouts_every_steps
        if every and step % every == 0:
            rows = gather_object([row for group in scored for row in rollout_rows(group)])
            if self.accelerator.is_main_process:
                self.run_dir.write_rollouts(step, rows)

    def _write_failures(
        self, step: int, lost: Sequence[LostSample], failures: Sequence[RewardFailure]
    ) -> list[dict[str, Any]]:
        """Those of the rewards are returned, from all processes."""
        rows: list[dict[str, Any]] = [
            {"step": step, "kind": "sample", "sample_id": each.sample_id, "reason": each.reason}
            for each in lost
        ]
        rows += [
            {
                "step": step,
                "kind": "reward",
                "reward": each.reward,
                "sample_id": each.sample_id,
                "rollout": each.rollout_index,
                "reason": each.summary,
                "completion": each.completion,
                "traceback": each.traceback,
            }
            for each in failures
        ]
        return [row for row in self._append_failures(rows) if row["kind"] == "reward"]

    def _append_failures(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of all processes for `failures.jsonl`, which are returned."""
        rows = gather_object(list(rows))
        if self.accelerator.is_main_process and rows:
            self.run_dir.append_failures(rows)
        return list(rows)

    def _step_counts(self, scored: Sequence[ScoredGroup]) -> StepCounts:
        lengths = [
            len(rollout.token_ids)
            for group in scored
            for rollout, advantage in zip(group.group.rollouts, group.advantages, strict=True)
            if advantage is not None
        ]
        num_completions = sum(total is not None for group in scored for total in group.table.totals)
        own = torch.tensor([[num_completions, sum(lengths)]], device=self.accelerator.device)
        num_completions, num_tokens = self.accelerator.gather(own).sum(0).tolist()  # pyright: ignore
        return StepCounts(
            num_completions=num_completions,
            num_tokens=num_tokens,
            max_new_tokens=self.sampling.max_new_tokens,
        )

    def _check(self, step: int, row: dict[str, float]) -> None:
        """Stop when updates are skipped too often, rewards fail too often, nothing can be read any more, or the engine
        samples from other weights than are trained."""
        self.guard.check(step)
        self.lost_steps = self.lost_steps + 1 if step and not row.get("tokens/prompt") else 0
        if self.lost_steps == MAX_LOST_STEPS:
            raise RuntimeError(
                f"step {step}: {MAX_LOST_STEPS} steps in a row had no usable prompt; see {self.run_dir.failures_file}"
            )
        if row.get("rewards/error_frac", 0.0) > self.config.rewards_max_error_frac:
            raise RuntimeError(
                f"step {step}: {describe_failures(self.reward_failures)}; {row['rewards/error_frac']:.1%} of the "
                f"completions have no total, more than rewards_max_error_frac="
                f"{self.config.rewards_max_error_frac}; see {self.run_dir.failures_file}"
            )
        limit = max_gap(self.config.rollout.max_gap, compute_dtype())
        if limit and row.get("sampler/gap_mean", 0.0) > limit:
            raise RuntimeError(
                f"step {step}: the engine's log-probs differ from the learner's by {row['sampler/gap_mean']:.2g} on "
                f"average, more than rollout.max_gap={limit:g}: it does not sample from the trained weights"
            )


def max_gap(configured: float | None, engine_dtype: torch.dtype) -> float:
    """The mean log-prob difference that stops a run; 0: none."""
    if configured is not None:
        return configured
    return 1e-3 if engine_dtype == torch.float32 else 0.05


def tally_groups(scored: Sequence[ScoredGroup], tally: Tally, specs: Mapping[str, RewardSpec]) -> None:
    """Rewards, their gates, lengths and signal of the step's groups."""
    for group in scored:
        totals = [total for total in group.table.totals if total is not None]
        tally.mean("reward/mean", totals)
        if totals:
            tally.mean("reward/std", [float(torch.tensor(totals, dtype=torch.float64).std(correction=0))])
        for name, column in group.table.columns.items():
            tally.mean(f"rewards/{name}/mean", column)
        for name in [name for name, spec in specs.items() if spec.only_if or spec.only_unless]:
            tally.mean(f"rewards/{name}/open", map(float, gates_open(name, specs[name], group.table.columns)))
        rollouts = group.group.rollouts
        tally.mean("completion/length", [len(rollout.token_ids) for rollout in rollouts])
        tally.mean("completion/stopped", [float(rollout.stopped) for rollout in rollouts])
        tally.mean("groups/no_signal", [float(not any(group.advantages))])
        tally.add("tokens/prompt", len(group.group.prompt.token_ids))
        tally.add("tokens/completion", sum(len(rollout.token_ids) for rollout in rollouts))
        others = {
            id(other): other for each in rollouts for some in each.counterfactuals.values() for other in some
        }
        if others:
            tally.add("tokens/counterfactual", sum(len(other.token_ids) for other in others.values()))


def tally_failures(scored: Sequence[ScoredGroup], failures: Sequence[RewardFailure], tally: Tally) -> None:
    """On what share of the completions each reward failed or abstained, and what share has no total for it."""
    num_completions = sum(len(group.advantages) for group in scored)
    tally.mean(
        "rewards/error_frac", [float(total is None) for group in scored for total in group.table.totals]
    )
    failed = Counter(failure.reward for failure in failures)
    empty = Counter(
        name for group in scored for name, column in group.table.columns.items() for v in column if v is None
    )
    for name in {name: None for group in scored for name in group.table.columns}:
        tally.mean_of(f"rewards/{name}/failed", failed[name], num_completions)
        tally.mean_of(f"rewards/{name}/abstained", empty[name] - failed[name], num_completions)


def describe_failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which rewards failed, how often, and why first."""
    reasons = {row["reward"]: row["reason"] for row in reversed(rows)}
    counts = Counter(row["reward"] for row in rows)
    return ", ".join(
        f"rewards.{name} failed on {count} completions ({reasons[name]})"
        for name, count in counts.most_common()
    )


def progress(row: dict[str, float]) -> str:
    """The figures that matter, for the progress bar."""
    names = [key for key in row if key.startswith("rewards/") and key.endswith("/mean")]
    shown = {"reward": "reward/mean"} | {key.split("/")[1]: key for key in names}
    shown |= {"length": "completion/length", "gap": "sampler/gap_max"}
    return " ".join(f"{label}={row[key]:.2g}" for label, key in shown.items() if key in row)


def summary(evaluated: dict[str, float]) -> str:
    """Held-out scores in one line."""
    kept = {
        key.removeprefix("eval/"): value
        for key, value in evaluated.items()
        if not key.endswith(("/lost", "_failures"))
    }
    return ", ".join(f"{key} {value:.3g}" for key, value in kept.items())
