"""Scores a run's stored rollouts under any reward set, without a GPU.

The set is the `rewards` of the config files; without a file that has any, the run's own. Overrides (key=value) go
on top. Only `rewards`, `rewards_workers` and `advantages` count; all else is as it was in the run. Prints what was
found and leaves it as replay.md, replay.json and replay.html.

For a reward that looks at frames the clips are decoded again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo.commands.replay.page import page
from grpo.commands.replay.report import make_report
from grpo.commands.replay.stats import Learning
from grpo.commands.replay.table import Replayed, ReplayTable
from grpo.commands.replay.text import markdown
from grpo.config.schema import Config
from grpo.groups import Rollout, ScoredGroup
from grpo.media.sampling import MediaSettings
from grpo.run.folder import RunDir, write_text
from grpo.run.rollout_files import num_groups, read_rollouts, rollout_files
from rewards.scoring.runner import RewardSet, Scoring, load_rewards

GROUPS_AT_ONCE = 64
REPLAYED_KEYS = ("rewards", "rewards_workers", "advantages")

Batch = list[tuple[int, ScoredGroup]]
"""Groups of one step, each behind its first row in the step's file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Replay what the command line names; returns the exit status, 1 if some reward failed on everything."""
    options = parser().parse_intermixed_args(argv)
    try:
        report = replay(options.run_dir, options.configs, steps=options.steps, limit=options.limit)
        out = write_report(report, options.out or options.run_dir / "replay")
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(markdown(report, num_examples=3))
    print(f"written: {out}/replay.html, replay.md, replay.json")
    broken = [reward["name"] for reward in report["rewards"] if reward["failed_frac"] == 1]
    for name in broken:
        reason = next(iter(report["failures"][name]["reasons"]))
        print(f"error: rewards.{name} failed on every completion: {reason}", file=sys.stderr)
    return 1 if broken else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="egogrpo replay", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder")
    parser.add_argument("configs", nargs="*", metavar="CONFIG | key=value", help="the reward set")
    parser.add_argument("--steps", metavar="10-50", help="only these steps, or one step")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most N groups, spread evenly over the steps"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN_DIR/replay")
    return parser


def replay(
    folder: Path, configs: Sequence[str], *, steps: str | None = None, limit: int | None = None
) -> dict[str, Any]:
    """What the rollouts of a run say about a reward set; ValueError or OSError in one line for a user's mistake."""
    run = RunDir(folder)
    config, own = read_configs(run, configs)
    files = chosen_files(run, steps)
    learning = learning_of(config, own)
    with closing(
        load_rewards(config.rewards, config.rewards_workers, normalise=learning.normalised)
    ) as rewards:
        replayed = score_files(rewards, files, own.media, learning, limit=limit)
    about = {"run_dir": str(folder), "configs": list(configs), "advantages": asdict(config.advantages)}
    return make_report(replayed, config.rewards, files, about)


def learning_of(config: Config, own: Config) -> Learning:
    """How the replayed totals become advantages: by the replay's `advantages`, and the run's own `loss`."""
    if own.loss.kl_in_reward and "kl" in config.rewards:
        raise ValueError(
            "config: rewards.kl: the run's loss.kl_in_reward has that name; call it something else"
        )
    return Learning(
        scale=config.advantages.scale,
        baseline=config.advantages.baseline,
        normalised=config.advantages.multi_objective_aggregation == "normalize_then_sum",
        kl_in_reward=own.loss.kl_in_reward,
        mask_truncated=own.loss.mask_truncated_completions,
    )


def read_configs(run: RunDir, argv: Sequence[str]) -> tuple[Config, Config]:
    """The run's config with the reward set to be replayed, and as it was.

    Files without a run's other settings are complete here, but what they do set has to be right.
    """
    if not run.config_file.is_file():
        raise FileNotFoundError(f"{run.path}: no config.yaml in it, so it is not a run's folder")
    schema = OmegaConf.structured(Config)
    try:
        files = [_load(arg) for arg in argv if "=" not in arg]
        overrides = OmegaConf.from_dotlist([arg for arg in argv if "=" in arg])
        OmegaConf.merge(schema, *files, overrides)  # a misspelt key is found here, wherever it is
        if other := sorted({str(key) for key in overrides} - {*REPLAYED_KEYS}):
            raise ValueError(
                f"config: {other[0]}: a replay takes only {', '.join(REPLAYED_KEYS)}; the rest is the run's"
            )
        own = OmegaConf.load(run.config_file)
        base = {
            key: value
            for key, value in own.items()
            if key != "rewards" or not any("rewards" in f for f in files)
        }
        layers = [{key: layer[key] for key in REPLAYED_KEYS if key in layer} for layer in (*files, overrides)]
        merged = OmegaConf.merge(schema, base, *layers)
        configs = [OmegaConf.to_object(each) for each in (merged, OmegaConf.merge(schema, own))]
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    except (TypeError, yaml.YAMLError) as error:
        raise ValueError(f"config: {' '.join(str(error).split())}") from error
    config, before = (cast(Config, each) for each in configs)
    if not config.rewards:
        raise ValueError("config: rewards is empty")
    return config, before


def chosen_files(run: RunDir, steps: str | None) -> dict[int, Path]:
    """The rollouts files of the chosen steps, by step."""
    files = rollout_files(run.rollouts)
    if not files:
        raise FileNotFoundError(
            f"{run.path}: no rollouts in it (log.rollouts_every_steps is 0, or no step is done)"
        )
    if steps is None:
        return files
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", steps)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise ValueError(f"--steps: {steps!r} is neither a step nor FIRST-LAST")
    chosen = {step: file for step, file in files.items() if first <= step <= last}
    if not chosen:
        raise ValueError(
            f"--steps {steps}: the rollouts in {run.rollouts} are of steps {min(files)} to {max(files)}"
        )
    return chosen


def score_files(
    rewards: RewardSet,
    files: Mapping[int, Path],
    media: MediaSettings,
    learning: Learning,
    *,
    limit: int | None = None,
) -> Replayed:
    """Score the groups of these files; only a few of them are in memory at a time."""
    table = ReplayTable(learning)
    underway: list[tuple[int, Batch, Scoring]] = []
    for step, batch in read_groups(files, media, limit=limit):
        check_counterfactuals(rewards, batch[0][1].group.rollouts[0])
        scoring = rewards.scoring(step, in_step=False)
        for _, scored in batch:
            scoring.add(scored.group)
        underway.append((step, batch, scoring))
        if len(underway) > 1:  # while one batch is scored, the next one is read
            add_scores(table, *underway.pop(0))
    for one in underway:
        add_scores(table, *one)
    return table.matrices()


def add_scores(table: ReplayTable, step: int, batch: Batch, scoring: Scoring) -> None:
    """Wait for the scores of a batch and take them."""
    scores = scoring.tables([scored.group for _, scored in batch])
    for (first_row, scored), score in zip(batch, scores, strict=True):
        table.add(step, first_row, scored, score)


def read_groups(
    files: Mapping[int, Path], media: MediaSettings, *, limit: int | None
) -> Iterator[tuple[int, Batch]]:
    """Some groups of a step at a time, with that step."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: must be at least 1, not {limit}")
    sizes = {step: num_groups(file) for step, file in files.items()} if limit else {}
    every, seen = math.ceil(sum(sizes.values()) / limit) if limit else 1, 0
    for step, file in files.items():
        groups = read_rollouts(file, media, every=every, first=-seen % every)
        while batch := list(islice(groups, GROUPS_AT_ONCE)):
            yield step, batch
        seen += sizes.get(step, 0)


def check_counterfactuals(rewards: RewardSet, rollout: Rollout) -> None:
    """Raise ValueError for a reward that compares with completions which the run did not sample."""
    for reward in rewards.rewards:
        for wanted in reward.counterfactuals:
            if wanted.frames not in rollout.counterfactuals:
                raise ValueError(
                    f"rewards.{reward.name}: compares with completions about {wanted.frames} frames, and the run "
                    "sampled none"
                )


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """The report as JSON, Markdown and a page, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "replay.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "replay.md", markdown(report, num_examples=12) + "\n")
    write_text(folder / "replay.html", page(report))
    return folder


def _load(path: str) -> DictConfig:
    if not Path(path).is_file():
        raise ValueError(f"config: no file {path}")
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"config: {path} holds no settings by name")
    return loaded


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
