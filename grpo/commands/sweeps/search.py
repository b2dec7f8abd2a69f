"""A search over numbers of the config with Optuna.

Each trial is one run of the sweep's config, in `search/trial_NNN/`, with the sweep's first seed: its value holds the
luck of that seed, and the best of many trials is flattered by it. Run the best again as an arm with several seeds.

What was proposed is kept in `search/trials.json`; what came of it is read from the runs' folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from grpo.commands.sweeps.execute import Runner, Slot, run_all
from grpo.commands.sweeps.plan import Run, SearchConfig, Sweep, load_run_config, make_run
from grpo.commands.sweeps.results import points_of, rows_of, values_of
from grpo.run.disk import write_text

if TYPE_CHECKING:
    from optuna.distributions import FloatDistribution, IntDistribution

    Distributions = Mapping[str, FloatDistribution | IntDistribution]


@dataclass(frozen=True)
class Trial:
    """A proposal, numbers by config key, and the run that has them."""

    numbers: Mapping[str, float]
    run: Run


async def run_search(
    sweep: Sweep, runner: Runner, slots: Sequence[Slot], *, say: Callable[[str], None]
) -> dict[str, str]:
    """Run the trials that are missing; the failed ones' labels, each with the reason.

    Raises ValueError without a `search` section, for a key that can't be set, and if the folder holds the trials of
    another search.
    """
    if sweep.search is None:
        raise ValueError("--search: the sweep file has no section `search`")
    search, distributions = sweep.search, distributions_of(sweep, sweep.search)
    file = Path(sweep.out) / "search" / "trials.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    trials = read_trials(sweep, file, search)
    done_before = {trial.run for trial in trials if trial.run.is_finished()}

    def runs() -> Iterator[Run]:
        """The runs of earlier commands, and those of new proposals, which learn from all that has ended by then."""
        yield from [trial.run for trial in trials]
        while len(trials) < search.trials:
            numbers = propose(search, distributions, trials, values_by_trial(sweep, trials))
            trials.append(make_trial(sweep, len(trials), numbers))
            write_text(file, json.dumps([trial.numbers for trial in trials]))
            yield trials[-1].run

    def report(_: object = None) -> None:
        write_text(file.with_name("search.md"), as_markdown(sweep, search, trials))

    failures = await run_all(runs(), runner, slots, say=say, after_each=report)
    report()
    known = values_by_trial(sweep, trials)
    ended = [trial.run for trial in trials if trial.run.is_finished() and trial.run not in done_before]
    without_value = [run.label for run in ended if run.arm not in known]
    return failures | dict.fromkeys(without_value, f"has no finite {search.metric}")


def distributions_of(sweep: Sweep, search: SearchConfig) -> Distributions:
    """What each key is drawn from: whole numbers where the config has one, and so are both ends of the range.

    Raises ValueError, naming the key, if the config does not take an end of a range, or what lies between them.
    """
    if not search.space:
        raise ValueError("search: space is empty")
    config = OmegaConf.structured(load_run_config(sweep, (), key="config"))
    distributions = {}
    for key, limits in search.space.items():
        found = _distribution(limits, OmegaConf.select(config, key), key=f"search.space.{key}")
        between = [] if isinstance(found.low, int) else [found.low + (found.high - found.low) / math.e]
        for point in (found.low, found.high, *between):
            load_run_config(sweep, [f"{key}={point}"], key=f"search.space.{key}")
        distributions[key] = found
    return distributions


def _distribution(limits: Any, now: object, *, key: str) -> FloatDistribution | IntDistribution:
    """The distribution that a range of the file stands for; now: what the config has for its key."""
    from optuna.distributions import FloatDistribution, IntDistribution

    try:
        given = limits if isinstance(limits, Mapping) else dict(zip(("low", "high"), limits, strict=True))
        found = FloatDistribution(**given)
        if not (math.isfinite(found.high - found.low) and isinstance(found.log, bool)):
            raise ValueError
    except (TypeError, ValueError):
        what = "neither [low, high] nor {low, high, log}, finite and in this order, above 0 for log"
        raise ValueError(f"{key}: {limits} is {what}") from None
    is_whole = all(type(each) is int for each in (given["low"], given["high"], now))
    return IntDistribution(**given) if is_whole else found


def read_trials(sweep: Sweep, file: Path, search: SearchConfig) -> list[Trial]:
    """The trials that were proposed so far; ValueError if they are of another config, or other keys."""
    proposed = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if proposed and proposed[0].keys() != search.space.keys():
        raise ValueError(f"search: {file} holds trials of {', '.join(proposed[0])} alone; set out=...")
    return [make_trial(sweep, number, numbers) for number, numbers in enumerate(proposed)]


def make_trial(sweep: Sweep, number: int, numbers: Mapping[str, float]) -> Trial:
    name = f"trial_{number:03d}"
    changes = [f"{key}={value!r}" for key, value in numbers.items()]
    folder = Path(sweep.out) / "search" / name
    return Trial(
        numbers, make_run(sweep, arm=name, changes=changes, seed=sweep.seeds[0], folder=folder, key=name)
    )


def values_by_trial(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, float]:
    """The finite values of the finished trials, by the name of their run."""
    assert sweep.search is not None
    points = points_of(rows_of([trial.run for trial in trials]), [sweep.search.metric])
    found = values_of(points, last=sweep.last).dropna()
    return dict(zip(found["arm"], found["value"], strict=True))


def propose(
    search: SearchConfig, distributions: Distributions, trials: Sequence[Trial], values: Mapping[str, float]
) -> dict[str, float]:
    """The next trial's numbers: a function of the trials so far, so that a search that goes on proposes what an
    uninterrupted one does."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (seed,) = np.random.SeedSequence([search.seed, len(trials)]).generate_state(1)
    num_random = max(2, min(10, search.trials // 3))
    sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=num_random, constant_liar=True)
    study = optuna.create_study(direction=search.direction, sampler=sampler)
    for trial in trials:
        value = values.get(trial.run.arm)
        no_value = TrialState.FAIL if trial.run.is_finished() else TrialState.RUNNING
        state = no_value if value is None else TrialState.COMPLETE
        if all(each.low <= trial.numbers[key] <= each.high for key, each in distributions.items()):
            study.add_trial(
                create_trial(
                    state=state, value=value, params=dict(trial.numbers), distributions=dict(distributions)
                )
            )
    return study.ask(dict(distributions)).params


def as_markdown(sweep: Sweep, search: SearchConfig, trials: Sequence[Trial]) -> str:
    """The trials as a table, the best one in bold."""
    values = values_by_trial(sweep, trials)
    best = (max if search.direction == "maximize" else min)(values, key=values.__getitem__, default=None)
    lines = [f"| trial | {search.metric} | {' | '.join(search.space)} |"]
    lines.append("| --- " * (len(search.space) + 2) + "|")
    for number, trial in enumerate(trials):
        no_value = "none" if trial.run.is_finished() else "open"
        value = f"{values[trial.run.arm]:.4f}" if trial.run.arm in values else no_value
        cells = [f"**{value}**" if trial.run.arm == best else value]
        cells += [f"{trial.numbers[key]:.4g}" for key in search.space]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    note = (
        f"{search.direction.capitalize()}d over {len(values)} trials, each one run with seed {sweep.seeds[0]}. The "
        "best of many is flattered by that seed's luck: run it as an arm with several seeds before you believe it."
    )
    return f"# {sweep.name}: search\n\n" + "\n".join(lines) + f"\n\n{note}\n"
