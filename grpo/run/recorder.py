"""The bookkeeping of a run: figures, rollouts, failures, what is shown, and the limits that stop a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict
from threading import Lock
from time import perf_counter
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from grpo.config.schema import Config
from grpo.groups import LostSample, RewardFailure, ScoredGroup
from grpo.media.loader import ClipLoader
from grpo.policy.model import Policy
from grpo.run.curves import draw_curves
from grpo.run.folder import RunDir, Score
from grpo.run.group_metrics import group_metrics
from grpo.run.metrics import Mean, Metrics
from grpo.run.pictures import pictured
from grpo.run.progress import say
from grpo.run.rollout_files import rollout_rows, write_rollouts
from grpo.run.standing import standing_of, watched
from grpo.run.terminal import Display, display_for
from grpo.run.trackers import TrackerThread, close_trackers
from rewards.scoring.runner import RewardSet

MAX_LOST_STEPS = 3
"""The steps in a row without a usable prompt that stop a run: all of the data is wrong then, not a clip."""

NUM_PICTURES = 2
"""The groups of a step that trackers get as pictures."""

MAX_GAP_STEPS = 3
"""The steps in a row with a gap above the limit that stop a run: in 16 bits one step may be beyond it by rounding."""
VERSION_GAP = "sampler/version_gap"
"""The figure of the mean difference to the engine's log-probs under the weights that it has sampled with."""
MOST_UNJUDGED_FRAC = 0.05
"""The share of a set's answers that may lack a judge's mark where its official score is compared with others'."""
FAR_GAPS = 4
"""The multiple of the limit that stops a run at once: no rounding comes so far."""


class Recorder:
    """The recorder of a run: it collects each step's figures, and writes to the run folder and the screen."""

    def __init__(
        self,
        config: Config,
        *,
        run_dir: RunDir,
        accelerator: Accelerator,
        rewards: RewardSet,
        loader: ClipLoader,
        policy: Policy,
        max_gap: float,
    ) -> None:
        """Make a recorder; `max_gap` is the mean log-prob difference to the engine that stops the run, 0 for none."""
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.rewards, self.loader, self.policy, self.max_gap = rewards, loader, policy, max_gap
        self.metrics = Metrics()
        """The figures of the step that is under way."""
        self.counted: dict[str, int] = {}
        """The values of counters that only grow, as they were last read."""
        self.reward_failures: list[dict[str, Any]] = []
        """The latest step's records of rewards that failed, of all processes."""
        self.num_lost_steps = self.num_gap_steps = 0
        self.warned: Set[str] = frozenset()
        """The names of what the user was warned of in the latest step."""
        self.lock = Lock()
        self.rows: list[dict[str, float]] = []
        """What is shown of the run so far, in the first process."""
        self.display: Display | None = None
        self.trackers: list[TrackerThread] = []
        self.pictured: Sequence[ScoredGroup] = ()
        """The latest step's groups that trackers are to get as pictures."""

    def begin(self, last_step: int) -> None:
        """Remove what was written after the step that the run resumes from; 0: the run begins."""
        if not self.accelerator.is_main_process:
            return
        if last_step:
            print(f"resuming after step {last_step}", flush=True)
        self.run_dir.forget_after(last_step or -1)
        self.rows = [watched(row) for row in self.run_dir.metrics()]
        hours_of = "GPU hours" if self.accelerator.device.type == "cuda" else "process hours"
        self.display = display_for(str(self.run_dir.path), hours_of=hours_of, is_live=self.config.log.live)
        self.trackers = [TrackerThread(name, self.run_dir.path) for name in {*self.config.log.trackers}]

    def draw(self) -> None:
        """Draw the curves of the run so far."""
        if self.accelerator.is_main_process:
            draw_curves(self.run_dir.each_metrics(), self.run_dir.path / "curves.png")

    def close(self) -> None:
        """Give the terminal back; end the trackers."""
        if self.display is not None:
            self.display.close()
        close_trackers(self.trackers)
        self.trackers = []

    def add(self, metrics: Metrics) -> None:
        """Add figures to those of the step that is under way. Any thread may call."""
        with self.lock:
            self.metrics += metrics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to the step's figures."""
        start = perf_counter()
        yield
        self.add(Metrics(seconds={name: perf_counter() - start}))

    def write_groups(
        self,
        step: int,
        scored: Sequence[ScoredGroup],
        lost: Sequence[LostSample],
        learner_logps: Mapping[bytes, Sequence[float]] | None = None,
    ) -> None:
        """Add the figures of a step's groups, and write its rollouts and failures.

        learner_logps: the learner's log-probs of this process's completions, by `groups.completion_key`.
        """
        specs, min_std = self.rewards.specs, self.config.advantages.min_std
        self.add(sum((group_metrics(group, specs, min_std=min_std) for group in scored), Metrics()))
        ages = Mean.of(
            step - 1 - each for group in scored for one in group.group.rollouts for each in one.versions
        )
        self.add(Metrics(means={"sampler/age_steps": ages}))
        deaths = self._growth({"rewards/process_deaths": self.rewards.num_deaths})
        seconds = {f"time/rewards/{name}": seconds for name, seconds in self.rewards.seconds.items()}
        self.add(Metrics(sums={"groups/lost": len(lost), **deaths}, maxima=seconds))
        failures = [failure for group in scored for failure in group.table.failures]
        self.reward_failures = self.write_failures(step, lost, failures)
        shown_every = self.config.log.pictures_every_steps
        if self.trackers and shown_every and step % shown_every == 0:
            self.pictured = pictured(scored, NUM_PICTURES)
        every = self.config.log.rollouts_every_steps
        if every and step % every == 0:
            # A completion may have been learned from in another process than the one that sampled it.
            logps = {key: each for part in gather_object([learner_logps or {}]) for key, each in part.items()}
            rows = gather_object([row for group in scored for row in rollout_rows(group, logps)])
            if self.accelerator.is_main_process:
                self.run_dir.write_rollouts(step, rows)

    def write_answers(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers of all processes to held-out questions, as a file like those of rollouts."""
        rows = gather_object(list(rows))
        if self.accelerator.is_main_process:
            write_rollouts(self.run_dir.answers, step, rows)

    def write_failures(
        self, step: int, lost: Sequence[LostSample], failures: Sequence[RewardFailure]
    ) -> list[dict[str, Any]]:
        """Write records of lost samples and failed rewards; return those of rewards, from all processes."""
        rows = [_of_sample(step, each) for each in lost] + [_of_reward(step, each) for each in failures]
        return [row for row in self.append_failures(rows) if row["kind"] == "reward"]

    def append_failures(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write rows of all processes to `failures.jsonl`, and return them."""
        rows = gather_object(list(rows))
        if self.accelerator.is_main_process and rows:
            self.run_dir.append_failures(rows)
        return list(rows)

    def finish_step(self, step: int) -> dict[str, float]:
        """Write the step's row of metrics and return it; raise RuntimeError if a figure is beyond its limit."""
        self.add(self._media_metrics())
        row, self.metrics = self.metrics.reduced(gather_object), Metrics()
        if self.accelerator.is_main_process:
            self._write_row(step, row)
        if self.display is not None:
            self._show(step, row, self.display)
        self._check_prompts(step, row)
        self._check_rewards(step, row)
        self._check_gap(step, row)
        return row

    def _show(self, step: int, row: Mapping[str, float], display: Display) -> None:
        """Show a step's figures, and say what the run is warned of, unless it was after the step before too."""
        self.rows.append({"step": step, **watched(row)})
        standing = standing_of(self.rows, self.config, num_processes=self.accelerator.num_processes)
        display.show(standing)
        for found in standing.warnings:
            if found.name not in self.warned:
                say(f"warning: step {step}: {found.text}")
        self.warned = {found.name for found in standing.warnings}
        if evaluated := {key: value for key, value in row.items() if key.startswith("eval/")}:
            say(f"step {step}: " + summary(evaluated))
            self.draw()

    def _write_row(self, step: int, row: Mapping[str, float]) -> None:
        """Write a step's figures. JSON has no infinity and no NaN: such figures are named in `failures.jsonl`."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self.run_dir.append_metrics({"step": step, **finite})
        for tracker in self.trackers:
            tracker.put(step, finite, self.pictured)
        self.pictured = ()
        if others := {name: str(row[name]) for name in row.keys() - finite.keys()}:
            self.run_dir.append_failures(
                [{"step": step, "kind": "figures", "figures": dict(sorted(others.items()))}]
            )

    def _media_metrics(self) -> Metrics:
        """Return the loader's and the vision tower's figures since the last row; the first row includes the start's."""
        counts = {f"media/{name}": count for name, count in asdict(self.loader.counters()).items()}
        if (features := self.policy.feature_cache) is not None:
            counts |= {f"media/features_{name}": n for name, n in asdict(features.counters).items()}
        kept_gib = self.loader.memory.num_bytes / 2**30
        return Metrics(sums=self._growth(counts), maxima={"media/kept_gib": kept_gib})

    def _growth(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the growth of counters since they were last read."""
        growth = {name: count - self.counted.get(name, 0) for name, count in counts.items()}
        self.counted |= counts
        return growth

    def _check_prompts(self, step: int, row: Mapping[str, float]) -> None:
        # What is not finished yet is not lost.
        is_lost = step and not row.get("tokens/prompt") and not row.get("groups/unfinished")
        self.num_lost_steps = self.num_lost_steps + 1 if is_lost else 0
        if self.num_lost_steps == MAX_LOST_STEPS:
            raise RuntimeError(
                f"step {step}: {MAX_LOST_STEPS} steps in a row had no usable prompt; see {self.run_dir.failures_file}"
            )

    def _check_rewards(self, step: int, row: Mapping[str, float]) -> None:
        limit = self.config.rewards_max_error_frac
        if row.get("rewards/error_frac", 0.0) > limit:
            raise RuntimeError(
                f"step {step}: {describe_failures(self.reward_failures)}; {row['rewards/error_frac']:.1%} of the "
                f"completions have no total, more than rewards_max_error_frac={limit}; "
                f"see {self.run_dir.failures_file}"
            )

    def _check_gap(self, step: int, row: Mapping[str, float]) -> None:
        name = "sampler/gap_mean"
        if self.config.rollout.overlap:
            # The other one has an update in it. This one is not measured in every step.
            name = VERSION_GAP
            if name not in row:
                return
        limit, gap = self.max_gap, row.get(name, 0.0)
        # A gap of NaN is beyond any limit.
        self.num_gap_steps = 0 if not limit or gap <= limit else self.num_gap_steps + 1
        if self.num_gap_steps == MAX_GAP_STEPS or (self.num_gap_steps and not gap <= FAR_GAPS * limit):
            raise RuntimeError(
                f"step {step}: the engine's log-probs differ from the learner's by {gap:.2g} on average, more than "
                f"rollout.max_gap={limit:g}: it does not sample from the trained weights"
            )


def held_out_score(row: Mapping[str, float], config: Config) -> Score | None:
    """Return `eval.best_metric`; else the mean, over held-out sets, of the greedy answers' rewards as they are weighted
    in training.

    None in a row of a step that was not evaluated, and where the judge left too few marks for an official score to
    compare by; ValueError if the evaluation had no metric of that name.
    """
    sets = ", ".join(f"{each.label}: {each.path}" for each in config.data.eval)
    most, metric = config.eval.max_samples, config.eval.best_metric
    questions = sets if most is None else f"the first {most} of {sets}"
    if metric is not None:
        found = {key: value for key, value in row.items() if key.startswith("eval/")}
        prefix, _, name = metric.rpartition("/")
        unjudged = found.get(f"{prefix}/unjudged")
        # The official score is of the marked answers alone: of few of them it can be anything, of none there is none.
        has_few = unjudged is not None and (unjudged > MOST_UNJUDGED_FRAC or metric not in found)
        if name == "official" and has_few:
            return None
        if found and metric not in found:
            raise ValueError(f"eval.best_metric: no metric {metric}; there are {', '.join(found)}")
        return Score(found[metric], f"{metric} of {questions}") if found else None
    measured = [
        [
            row[f"eval/{each.label}/{name}"] * spec.weight
            for name, spec in config.rewards.items()
            if f"eval/{each.label}/{name}" in row
        ]
        for each in config.data.eval
    ]
    totals = [sum(parts) for parts in measured if parts]
    if not totals:
        return None
    return Score(sum(totals) / len(totals), questions)


def describe_failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which rewards failed, how often, and each one's first reason."""
    reasons = {row["reward"]: row["reason"] for row in reversed(rows)}
    counts = Counter(row["reward"] for row in rows)
    return ", ".join(
        f"rewards.{name} failed on {count} completions ({reasons[name]})"
        for name, count in counts.most_common()
    )


def summary(evaluated: Mapping[str, float]) -> str:
    """Return held-out scores in one line, by their names in `metrics.jsonl`."""
    kept = {key: value for key, value in evaluated.items() if not key.endswith(("/lost", "_failures"))}
    return ", ".join(f"{key} {value:.3g}" for key, value in kept.items())


def _of_sample(step: int, lost: LostSample) -> dict[str, Any]:
    return {"step": step, "kind": "sample", "sample_id": lost.sample_id, "reason": lost.reason}


def _of_reward(step: int, failure: RewardFailure) -> dict[str, Any]:
    return {
        "step": step,
        "kind": "reward",
        "reward": failure.reward,
        "sample_id": failure.sample_id,
        "rollout": failure.rollout_index,
        "reason": failure.summary,
        "completion": failure.completion,
        "traceback": failure.traceback,
    }
