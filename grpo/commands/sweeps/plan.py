"""A sweep file, and the runs that it stands for. All of them are checked before the first one starts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import MISSING, OmegaConf

from grpo.config.limits import NotNegative, Positive, refusals
from grpo.config.load import load_config, one_line_errors, read_file, read_overrides
from grpo.config.schema import Config
from grpo.run.folder import RunDir
from rewards.scoring.runner import load_rewards

# A folder's name, and no YAML syntax.
ARM_NAME = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9+_.-]*")
# Folders for the trials and the jobs.
NOT_ARMS = ("search", "slurm")
SET_BY_THE_SWEEP = ("run_dir", "seed")


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    config_file: str = "launch/accelerate/single.yaml"
    """The config of `accelerate launch` that every run gets."""
    num_processes: Positive[int] = 1
    """Processes of one run, with one GPU each where there are GPUs."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Optuna (TPE) over numbers of the config. A trial is one run with the first of the sweep's seeds."""

    metric: str = MISSING
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: Positive[int] = 20
    seed: int = 0
    """The seed of the sampler that proposes the trials."""
    space: dict[str, Any] = field(default_factory=dict)
    """Config keys with their range: [low, high], or {low: ..., high: ..., log: true}."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    name: str = MISSING
    out: str = "runs/sweeps/${name}"
    config: list[str] = field(default_factory=list)
    """Config files of every run, later ones over earlier ones."""
    overrides: list[str] = field(default_factory=list)
    """key=value for every run, over the files."""
    arms: dict[str, Any] = field(default_factory=dict)
    """What each arm changes: a list of key=value, or a mapping of dotted keys. The first is the baseline."""
    seeds: NotNegative[list[int]] = field(default_factory=lambda: [0, 1, 2])
    """Every arm runs with each of these seeds, so that arms are compared seed by seed."""
    metrics: list[str] = field(default_factory=list)
    """Keys of `metrics.jsonl` that are tabled and drawn."""
    last: Positive[int] = 1
    """A run's value of a metric is the mean over so many of the last rows that have it; 1: the last evaluation."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    slurm: dict[str, Any] = field(default_factory=dict)
    """What a run's job asks for, in submitit's names: timeout_min, gpus_per_node, slurm_partition, ..."""
    search: SearchConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a sweep."""

    arm: str
    seed: int
    folder: Path
    argv: tuple[str, ...]
    """What grpo/train.py is called with."""
    num_steps: int

    @property
    def label(self) -> str:
        return f"{self.arm} seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def is_finished(self) -> bool:
        return RunDir(self.folder).is_finished(self.num_steps)


def load_sweep(file: str, overrides: Sequence[str] = ()) -> Sweep:
    """A sweep file with key=value laid over it: `seeds=[0]` changes the sweep, `num_steps=10` each of its runs.

    Raises ValueError in one line that names the file or the key.
    """
    if not Path(file).is_file():
        raise ValueError(f"sweep: no file {file}")
    names = {each.name for each in dataclasses.fields(Sweep)}
    own = [text for text in overrides if re.split(r"[.=\[]", text)[0] in names]
    others = [text for text in overrides if text not in own]
    with one_line_errors(file):
        layers = read_file(Path(file), Sweep, place=file), read_overrides(own, Sweep, place=file)
        merged = OmegaConf.merge(OmegaConf.structured(Sweep), *layers)
        # What ${...} stands for in them is for each run to say, which has other keys, and a run_dir of its own.
        raw = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))
        # As its dataclass is frozen.
        OmegaConf.set_readonly(merged, False)
        merged.arms, merged.overrides = {}, []
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"{file}: {missing[0]} is not set")
        sweep = cast(Sweep, OmegaConf.to_object(merged))
    sweep = dataclasses.replace(sweep, arms=raw["arms"], overrides=[*raw["overrides"], *others])
    _check(sweep, file)
    return sweep


def plan_runs(sweep: Sweep) -> list[Run]:
    """Every arm with every seed, seed by seed, so that the first comparisons come early.

    Raises ValueError, naming arm and key, for an override that does not exist, a reward that does not load, a
    folder that holds another run, two runs with one folder, and two arms that are the same.
    """
    # What is wrong in all arms is not the first arm's fault.
    load_run_config(sweep, (), key="config")
    check_arms(sweep)
    runs = [
        make_run(
            sweep,
            arm=arm,
            changes=arm_overrides(arm, changes),
            seed=seed,
            folder=Path(sweep.out) / arm / f"seed_{seed}",
            key=f"arms.{arm}",
        )
        for seed in sweep.seeds
        for arm, changes in sweep.arms.items()
    ]
    check_folders(runs)
    return runs


def check_arms(sweep: Sweep) -> None:
    """Raise ValueError for two arms that do not differ."""
    arms: dict[str, str] = {}
    for arm, changes in sweep.arms.items():
        config = load_run_config(sweep, arm_overrides(arm, changes), key=f"arms.{arm}")
        other = arms.setdefault(str(config), arm)
        if other != arm:
            raise ValueError(f"arms.{arm}: the same as {other}")


def make_run(sweep: Sweep, *, arm: str, changes: Sequence[str], seed: int, folder: Path, key: str) -> Run:
    """A run whose config and rewards load, and whose folder is free or holds the same run; ValueError begins with the
    key."""
    own = [f"seed={seed}", f"run_dir={_quoted(str(folder))}"]
    config = load_run_config(sweep, [*changes, *own], key=key)
    run_dir = RunDir(folder)
    if run_dir.metrics_file.exists():
        try:
            run_dir.check_goes_on(config)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if (done := last_step(run_dir)) > config.num_steps:
            raise ValueError(
                f"{key}: {folder} holds a run of {done} steps, not {config.num_steps}; set out=..."
            )
    if config.media.cache_dir is None:
        # All arms read the same clips.
        own.append(f"media.cache_dir={_quoted(str(Path(sweep.out) / 'clip_cache'))}")
    argv = (*sweep.config, *sweep.overrides, *changes, *own)
    return Run(arm=arm, seed=seed, folder=folder, argv=argv, num_steps=config.num_steps)


def last_step(run_dir: RunDir) -> int:
    """The step that the run in a folder has come to."""
    rows = run_dir.metrics()
    return rows[-1]["step"] if rows else 0


def load_run_config(sweep: Sweep, changes: Sequence[str], *, key: str) -> Config:
    """The config of a run with these changes; ValueError begins with the key."""
    # A run_dir, because a config file need not name one: the sweep does.
    argv = [*sweep.config, f"run_dir={_quoted(sweep.out)}", *sweep.overrides, *changes]
    try:
        config = load_config(argv)
        load_rewards(config.rewards)
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error
    return config


def arm_overrides(arm: str, changes: object) -> list[str]:
    """An arm's changes as key=value; ValueError if they are no such list or mapping."""
    if isinstance(changes, Mapping):
        pairs = [f"{key}={_quoted(value)}" for key, value in changes.items()]
    elif isinstance(changes, list | tuple):
        pairs = [str(each) for each in changes]
    elif changes is None:
        pairs = []
    else:
        raise ValueError(f"arms.{arm}: {changes!r} is neither a list of key=value nor a mapping; [] for none")
    check_overrides(pairs, key=f"arms.{arm}")
    return pairs


def check_overrides(pairs: Iterable[str], *, key: str) -> None:
    """Raise ValueError for what is no key=value, or sets what the sweep sets."""
    for text in pairs:
        name, equals, _ = text.partition("=")
        if not equals:
            raise ValueError(f"{key}: {text!r} is no key=value")
        if name in SET_BY_THE_SWEEP:
            raise ValueError(
                f"{key}: {name} is set by the sweep, from {'out' if name == 'run_dir' else 'seeds'}"
            )


def _quoted(value: object) -> str:
    """A value as the right side of an override. JSON is YAML, and keeps a string a string: "012" stays one."""
    return json.dumps(value, ensure_ascii=False)


def check_folders(runs: Sequence[Run]) -> None:
    """Raise ValueError if two runs would write to one folder, through a link for example."""
    labels: dict[Path, str] = {}
    for run in runs:
        other = labels.setdefault(run.folder.resolve(), run.label)
        if other != run.label:
            raise ValueError(f"out: {other} and {run.label} have one folder, {run.folder.resolve()}")


def _check(sweep: Sweep, file: str) -> None:
    """Raise ValueError for what is wrong with the sweep itself."""
    for key in ("arms", "seeds", "metrics", "config"):
        if not getattr(sweep, key):
            raise ValueError(f"{file}: {key} is empty")
    if repeated := {seed for seed in sweep.seeds if sweep.seeds.count(seed) > 1}:
        raise ValueError(f"{file}: seeds: {min(repeated)} is there twice")
    for arm in sweep.arms:
        _check_name(arm, file)
    for problem in refusals(sweep):
        raise ValueError(f"{file}: {problem}")
    if not Path(sweep.launch.config_file).is_file():
        raise ValueError(f"{file}: launch.config_file: no file {sweep.launch.config_file}")
    check_overrides(sweep.overrides, key="overrides")


def _check_name(arm: str, file: str) -> None:
    if not ARM_NAME.fullmatch(arm):
        raise ValueError(f"{file}: arms: {arm!r} can't name a folder: letters, digits and + - _ . only")
    if arm in NOT_ARMS or arm.startswith("results."):
        raise ValueError(f"{file}: arms: {arm!r} can't name a folder: the sweep has one of that name itself")
