"""A search over numbers of the config with Optuna.

Each trial is one run of the sweep's config, in `search/trial_NNN/`, with the sweep's first seed: its value holds the
luck of that seed, and the best of many trials is flattered by it. Run the best again as an arm with several seeds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from omegaconf import OmegaConf

from grpo.commands.sweeps.execute import Runner, in_threads, with_retry
from grpo.commands.sweeps.plan import (
    Run,
    SearchConfig,
    Sweep,
    load_run_config,
    make_run,
    read_space,
)
from grpo.commands.sweeps.results import points_of, rows_of, values_of
from grpo.run.folder import write_text

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def run_search(sweep: Sweep, runner: Runner, *, jobs: int, say: Callable[[str], None]) -> dict[str, str]:
    """Run the trials that are missing; the failed ones' labels, each with the reason.

    Raises ValueError without a `search` section, for a key that can't be set, and if the folder
    holds the trials of another search.
    """
    if sweep.search is None:
        raise ValueError("--search: the sweep file has no section `search`")
    search = Search(sweep, sweep.search, runner, say)
    search.write_table()
    missing = range(search.num_missing())
    in_threads(lambda _: search.next_trial(), missing, runner, jobs=jobs, after_each=search.write_table)
    return search.failures


def distributions_of(sweep: Sweep, search: SearchConfig) -> dict[str, BaseDistribution]:
    """What each key is drawn from: whole numbers where the config has one, and so are both ends of the range.

    Raises ValueError, naming the key, if the config does not take an end of a range, or what lies between them.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    config = OmegaConf.structured(load_run_config(sweep, (), key="config"))
    distributions: dict[str, BaseDistribution] = {}
    for key, limits in read_space(search).items():
        low, high = limits.low, limits.high
        is_whole = all(type(each) is int for each in (low, high, OmegaConf.select(config, key)))
        for point in (low, high) if is_whole else (low, high, low + (high - low) / math.e):
            load_run_config(sweep, [f"{key}={point}"], key=f"search.space.{key}")
        distributions[key] = (
            IntDistribution(int(low), int(high), log=limits.log)
            if is_whole
            else FloatDistribution(low, high, log=limits.log)
        )
    return distributions


class Search:
    """The study on disk, and the trials that come from it."""

    def __init__(
        self, sweep: Sweep, search: SearchConfig, runner: Runner, say: Callable[[str], None]
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.search, self.runner, self.say = sweep, search, runner, say
        self._distributions = distributions_of(sweep, search)
        self.folder = Path(sweep.out) / "search"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.failures: dict[str, str] = {}
        self._lock = threading.Lock()
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / "trials.journal"))),
            study_name=sweep.name,
            direction=search.direction,
            load_if_exists=True,
        )
        self._sampler = optuna.samplers.TPESampler
        self._failed = optuna.trial.TrialState.FAIL
        self._check_same()
        # What an earlier command left open, because it was killed or the run failed, comes first: the run resumes.
        self._open = [each.number for each in self.study.trials if each.state.name == "RUNNING"]

    def num_missing(self) -> int:
        done = sum(
            trial.state.name == "COMPLETE" or was_made(trial, self.search) for trial in self.study.trials
        )
        return max(self.search.trials - done, 0)

    def next_trial(self) -> None:
        """Run the next proposal and tell the study its value. Without one it stays open for the next command."""
        with self._lock:
            number, changes = self._propose()
        run = self._run_of(number, changes)
        reason = None if run.is_finished() else with_retry(run, self.runner, self.say)
        if self.runner.is_stopped:
            return
        value = None if reason else self._value_of(run)
        if value is None:
            self.failures[run.label] = reason or f"has no finite {self.search.metric}"
            if not reason:  # the run has come to its end: to try again would give the same
                with self._lock:
                    self.study.tell(number, state=self._failed)
            return
        with self._lock:
            self.study.tell(number, value)

    def write_table(self) -> None:
        with self._lock:
            write_text(self.folder / "search.md", as_markdown(self.sweep, self.search, self.study.trials))

    def _propose(self) -> tuple[int, Mapping[str, float]]:
        """A trial's number and its values by config key."""
        if self._open:
            trial = self.study.trials[self._open.pop(0)]
            if trial.params.keys() == self._distributions.keys():
                return trial.number, trial.params
            self.study.tell(trial.number, state=self._failed)  # killed while it was being proposed
        # A seed for each trial: with one for all, a search that goes on would propose the first trials again.
        (seed,) = np.random.SeedSequence([self.search.seed, len(self.study.trials)]).generate_state(1)
        num_random = max(2, min(10, self.search.trials // 3))
        self.study.sampler = self._sampler(seed=int(seed), n_startup_trials=num_random, constant_liar=True)
        asked = self.study.ask(self._distributions)
        return asked.number, asked.params

    def _run_of(self, number: int, changes: Mapping[str, float]) -> Run:
        name = f"trial_{number:03d}"
        return make_run(
            self.sweep,
            arm=name,
            changes=[f"{key}={value!r}" for key, value in changes.items()],
            seed=self.sweep.seeds[0],
            folder=self.folder / name,
            key=name,
        )

    def _value_of(self, run: Run) -> float | None:
        points = points_of(rows_of([run]), [self.search.metric])
        return next(iter(values_of(points, last=self.sweep.last)["value"].dropna()), None)

    def _check_same(self) -> None:
        """Raise ValueError if all else but the proposals is not as in the trials that are there."""
        now = {
            "config": [*self.sweep.config, *self.sweep.overrides, f"seed={self.sweep.seeds[0]}"],
            "metric": f"{self.search.metric}, last {self.sweep.last}",
            "direction": self.search.direction,
            "space": sorted(self.search.space),
        }
        for key, value in now.items():
            before = self.study.user_attrs.get(key, value)
            if before != value:
                raise ValueError(
                    f"search: {self.folder} holds trials with {key} {before}, not {value}; set out=..."
                )
            self.study.set_user_attr(key, value)


def was_made(trial: optuna.trial.FrozenTrial, search: SearchConfig) -> bool:
    """Whether a trial had its run, which ended without a value; one killed while it was proposed lacks parameters."""
    return trial.state.name == "FAIL" and trial.params.keys() == search.space.keys()


def as_markdown(sweep: Sweep, search: SearchConfig, trials: list[optuna.trial.FrozenTrial]) -> str:
    """The trials as a table, the best one in bold."""
    keys = [*search.space]
    trials = [trial for trial in trials if trial.state.name != "FAIL" or was_made(trial, search)]
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    choose = max if search.direction == "maximize" else min
    best = choose(done, key=lambda trial: cast(float, trial.value)).number if done else None
    lines = [f"| trial | {search.metric} | {' | '.join(keys)} |", "| --- " * (len(keys) + 2) + "|"]
    for trial in trials:
        no_value = "none" if was_made(trial, search) else "open"
        value = no_value if trial.value is None else f"{trial.value:.4f}"
        cells = [f"**{value}**" if trial.number == best else value]
        cells += [f"{trial.params[key]:.4g}" if key in trial.params else "–" for key in keys]
        lines.append(f"| {trial.number} | {' | '.join(cells)} |")
    note = (
        f"{search.direction.capitalize()}d over {len(done)} trials, each one run with seed {sweep.seeds[0]}. The best "
        "of many is flattered by that seed's luck: run it as an arm with several seeds before you believe it."
    )
    return f"# {sweep.name}: search\n\n" + "\n".join(lines) + f"\n\n{note}\n"
