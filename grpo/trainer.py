"""GRPO, the loop: `run` -> `step` -> `Learner.update`, each readable alone. Start with `step`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from grpo.config.schema import Config
from grpo.evaluation import Evaluator
from grpo.feed.dynamic_sampling import Sampled, means_of
from grpo.feed.prompts import Feed
from grpo.groups import Batch, Group, LostSample, RewardFailure, RewardTable, Rollout, ScoredGroup
from grpo.learner.advantages import score_groups
from grpo.learner.balance import balanced
from grpo.learner.guards import Guard
from grpo.learner.kl_reward import subtract_divergences
from grpo.learner.launching import compute_dtype
from grpo.learner.losses import step_counts
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
from grpo.run.metrics import Mean, Metrics
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
        self.metrics = Metrics()  # of the step that is under way
        self.lost_steps = 0
        self.num_reward_deaths = 0
        self.reward_failures: list[dict[str, Any]] = []  # of the latest step, in all processes

    def step(self, step: int) -> None:
        """Sample a group per question, score it, and move the policy towards its better half."""
        with self._timed("time/data"):
            batch = self.feed.batch(step)
        sampled = self._sample(batch, step)
        sampled = self._resample_flat(sampled, step)
        groups, tables = sampled.groups, sampled.tables
        if self.config.loss.kl_in_reward:
            tables = self._less_kl(groups, tables)
        scored = score_groups(
            groups,
            tables,
            scale=self.config.advantages.scale,
            baseline=self.config.advantages.baseline,
            normalised=self.rewards.normalise,
            mask_truncated=self.config.loss.mask_truncated_completions,
            gather=gather_object,
        )
        counts = step_counts(scored, max_new_tokens=self.sampling.max_new_tokens, gather=gather_object)
        tokens_per_row = self.config.optim.tokens_per_row
        drop_flat = not self.config.loss.needs_flat_groups
        segments = segments_of(scored, tokens_per_row=tokens_per_row, drop_flat=drop_flat)
        segments = balanced(segments, self.accelerator)
        rows = pack(segments, self.policy.family, tokens_per_row=tokens_per_row)
        with self._timed("time/update"):
            self.engine.sleep()
            result = self.learner.update(rows, counts, step)
            self.engine.wake()
        with self._timed("time/sync"):
            self.engine.sync()
        self.metrics += result.metrics
        is_blamed = any(gather_object([len(result.bad_rows)]))
        self._append_failures(self.guard.watch(step, result, rows, is_blamed=is_blamed))
        self._record(step, scored, sampled.batch.lost)

    def _sample(self, batch: Batch, step: int) -> Sampled:
        """A group of completions per question, and what the rewards say about it."""
        scoring = self.rewards.scoring(step)
        with self._timed("time/rollout"):
            groups = self.engine.generate(batch.prompts, self.sampling, batch.seeds, on_group=scoring.add)
            groups = self._with_counterfactuals(groups, batch.seeds)
        with self._timed("time/reward"):
            tables = scoring.tables(groups)
        if (memory := self.feed.memory) is not None:
            for part in gather_object([means_of(groups, tables, memory.config.reward)]):
                memory.record(step, part)
            self.metrics += Metrics(maxima={"groups/left_out": memory.num_left_out(step)})
        return Sampled(batch, groups, tables)

    def _resample_flat(self, sampled: Sampled, step: int) -> Sampled:
        """Other questions in the place of those without signal, as often as allowed (`dynamic_sampling.py`)."""
        for attempt in range(1, self.config.dynamic_sampling.max_resample_times + 1):
            flat = sampled.flat_places
            if not any(gather_object([len(flat)])):  # all processes go on, or none does
                break
            with self._timed("time/data"):
                batch = self.feed.others(step, attempt, flat)
            self.metrics += Metrics(sums={"groups/resampled": len(flat)})
            sampled = sampled.with_others(self._sample(batch, step))
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

    def _less_kl(self, groups: Sequence[Group], tables: Sequence[RewardTable]) -> list[RewardTable]:
        less, metrics = subtract_divergences(
            groups, tables, self.learner.reference_logps, self.config.loss, self.policy.family
        )
        self.metrics += metrics
        return less

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
            self._finish_step(0, bar)
        for step in range(first, config.num_steps + 1):
            with self._timed("time/step"):
                self.step(step)
            self._finish_step(step, bar)
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

    def _finish_step(self, step: int, bar: tqdm | None) -> None:
        """Evaluate where it is due, write the step's row of metrics, and stop the run if a figure is wrong."""
        every = self.config.eval.every_steps
        if every and self.evaluator.sets and (step % every == 0 or step == self.config.num_steps):
            with self._timed("time/eval"):
                found = self.evaluator.run(self.engine)
            self.metrics += found.metrics
            self._write_failures(step, found.lost, found.failures)
        self.metrics += self._media_metrics()
        row, self.metrics = self.metrics.reduced(gather_object), Metrics()
        if self.accelerator.is_main_process and row:
            self.run_dir.append_metrics({"step": step, **row})
        if bar is not None:
            bar.update(step - bar.n)
            bar.set_postfix_str(progress(row))
            if evaluated := {key: value for key, value in row.items() if key.startswith("eval/")}:
                bar.write(f"step {step}: " + summary(evaluated))
        self._check(step, row)

    def _media_metrics(self) -> Metrics:
        counters = self.feed.loader.counters()
        sums = {f"media/{key}": count for key, count in asdict(counters - self.media_counters).items()}
        self.media_counters = counters
        if (features := self.policy.feature_cache) is not None:
            computed = features.counters.computed - self.feature_counters.computed
            reused = features.counters.reused - self.feature_counters.reused
            sums |= {"media/features_computed": computed, "media/features_reused": reused}
            self.feature_counters = replace(features.counters)
        kept_gib = self.feed.loader.memory.num_bytes / 2**30
        return Metrics(sums=sums, maxima={"media/kept_gib": kept_gib})

    def _record(self, step: int, scored: Sequence[ScoredGroup], lost: Sequence[LostSample]) -> None:
        """The step's figures, its rollouts and what went wrong."""
        deaths = self.rewards.num_deaths - self.num_reward_deaths
        self.num_reward_deaths = self.rewards.num_deaths
        seconds = {f"time/rewards/{name}": each for name, each in self.rewards.seconds.items()}
        self.metrics += group_metrics(scored, self.rewards.specs) + failure_metrics(scored)
        self.metrics += Metrics(
            sums={"groups/lost": len(lost), "rewards/process_deaths": deaths}, maxima=seconds
        )
        failures = [failure for group in scored for failure in group.table.failures]
        self.reward_failures = self._write_failures(step, lost, failures)
        every = self.config.log.rollouts_every_steps
        if every and step % every == 0:
            rows = gather_object([row for group in scored for row in rollout_rows(group)])
            if self.accelerator.is_main_process:
                self.run_dir.write_rollouts(step, rows)

    @contextmanager
    def _timed(self, key: str) -> Iterator[None]:
        """Seconds spent in the block."""
        start = perf_counter()
        yield
        self.metrics += Metrics(seconds={key: perf_counter() - start})

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


def group_metrics(scored: Sequence[ScoredGroup], specs: Mapping[str, RewardSpec]) -> Metrics:
    """Rewards, their gates, lengths and signal of the step's groups."""
    return sum((_of_group(group, specs) for group in scored), Metrics())


def _of_group(scored: ScoredGroup, specs: Mapping[str, RewardSpec]) -> Metrics:
    columns, rollouts = scored.table.columns, scored.group.rollouts
    totals = [total for total in scored.table.totals if total is not None]
    gated = [name for name, spec in specs.items() if spec.only_if or spec.only_unless]
    # Several rollouts may hold the same completions about changed frames.
    others = {
        id(other): other for each in rollouts for some in each.counterfactuals.values() for other in some
    }
    sums = {"tokens/prompt": len(scored.group.prompt.token_ids), "tokens/completion": num_tokens(rollouts)}
    return Metrics(
        means={
            "reward/mean": Mean.of(totals),
            "reward/std": Mean.of([float(np.std(totals))] if totals else []),
            **{f"rewards/{name}/mean": Mean.of(column) for name, column in columns.items()},
            **{f"rewards/{name}/open": Mean.of(gates_open(name, specs[name], columns)) for name in gated},
            "completion/length": Mean.of(len(rollout.token_ids) for rollout in rollouts),
            "completion/stopped": Mean.of(rollout.stopped for rollout in rollouts),
            "groups/no_signal": Mean.of([not any(scored.advantages)]),
        },
        sums=sums | ({"tokens/counterfactual": num_tokens(others.values())} if others else {}),
    )


def num_tokens(rollouts: Iterable[Rollout]) -> int:
    return sum(len(rollout.token_ids) for rollout in rollouts)


def failure_metrics(scored: Sequence[ScoredGroup]) -> Metrics:
    """On what share of the completions each reward failed or abstained, and what share has no total for it."""
    num_completions = sum(len(group.advantages) for group in scored)
    failed = Counter(failure.reward for group in scored for failure in group.table.failures)
    means = {"rewards/error_frac": Mean.of(total is None for group in scored for total in group.table.totals)}
    empty = Counter(
        name for group in scored for name, column in group.table.columns.items() for v in column if v is None
    )
    for name in {name: None for group in scored for name in group.table.columns}:
        means[f"rewards/{name}/failed"] = Mean(failed[name], num_completions)
        means[f"rewards/{name}/abstained"] = Mean(empty[name] - failed[name], num_completions)
    return Metrics(means=means)


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
