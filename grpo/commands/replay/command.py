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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo.commands.arguments import Parser
from grpo.commands.replay.report import make_report
from grpo.commands.replay.show import markdown, page
from grpo.commands.replay.table import Batch, Groups, Replayed, collect
from grpo.config.load import one_line_errors, read_config, read_layers, to_config, to_layer
from grpo.config.schema import Config
from grpo.groups import Rollout
from grpo.learner.advantages import advantages_of
from grpo.media.sampling import MediaSettings
from grpo.run.disk import write_text
from grpo.run.folder import RunDir, check_is_run
from grpo.run.progress import under_way
from grpo.run.rollout_files import num_groups, read_rollouts, rollout_files
from rewards.scoring.runner import RewardSet, Scoring, load_rewards

GROUPS_AT_ONCE = 64
REPLAYED_KEYS = ("rewards", "rewards_workers", "advantages")


def main(argv: Sequence[str] | None = None) -> int:
    """Replay what the command line names; returns the exit status, 1 if some reward failed on everything."""
    options = parser().parse_intermixed_args(argv)
    try:
        with under_way("scoring the stored rollouts"):
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
    parser = Parser(prog="egogrpo replay", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder")
    parser.add_argument("configs", nargs="*", default=[], metavar="CONFIG | key=value", help="the reward set")
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
    if not own.loss.is_sampled:
        raise ValueError(
            f"{folder}: its completions were given (loss.type=nll), so rewards gave them no advantages"
        )
    files = chosen_files(run, steps)
    replayed = score(config, own, files, limit=limit)
    about = {"run_dir": str(folder), "configs": list(configs), "advantages": asdict(config.advantages)}
    return make_report(replayed, config.rewards, files, about)


def score(config: Config, own: Config, files: Mapping[int, Path], *, limit: int | None = None) -> Replayed:
    """The completions in these files under `rewards` and `advantages` of the config; all else is the run's own."""
    normalised = config.advantages.multi_objective_aggregation == "normalize_then_sum"
    to_advantages = partial(
        advantages_of,
        scale=config.advantages.scale,
        baseline=config.advantages.baseline,
        min_std=config.advantages.min_std,
        normalised=normalised,
        mask_truncated=own.loss.mask_truncated_completions,
    )
    loaded = load_rewards(
        config.rewards, config.rewards_workers, normalise=normalised, num_steps=own.num_steps
    )
    with closing(loaded) as rewards:
        batches = scored_batches(rewards, files, own.media, limit=limit)
        return collect(batches, to_advantages, stored=own.loss.reference_parts)


def read_configs(run: RunDir, argv: Sequence[str]) -> tuple[Config, Config]:
    """The run's config with the reward set to be replayed, and as it was.

    Files without a run's other settings are complete here, but what they do set has to be right.
    """
    check_is_run(run.path)
    own = read_config(run.config_file)
    *files, overrides = layers = read_layers(argv)
    with one_line_errors():
        # A misspelt key is found here, wherever it is.
        OmegaConf.merge(OmegaConf.structured(Config), *layers)
    if other := sorted({str(key) for key in overrides} - {*REPLAYED_KEYS}):
        raise ValueError(
            f"config: {other[0]}: a replay takes only {', '.join(REPLAYED_KEYS)}; the rest is the run's"
        )
    base = to_layer(own)
    if any("rewards" in file for file in files):
        base = OmegaConf.masked_copy(base, [str(key) for key in base if key != "rewards"])
    chosen = [
        OmegaConf.masked_copy(layer, [key for key in REPLAYED_KEYS if key in layer]) for layer in layers
    ]
    return to_config([base, *chosen]), own


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


def scored_batches(
    rewards: RewardSet, files: Mapping[int, Path], media: MediaSettings, *, limit: int | None = None
) -> Iterator[Batch]:
    """The groups of these files with their scores; while some are scored, the next ones are read."""
    underway: deque[tuple[int, Groups, Scoring]] = deque()
    for step, groups in read_groups(files, media, limit=limit):
        check_counterfactuals(rewards, groups[0][1].group.rollouts[0])
        scoring = rewards.scoring(step, in_step=False)
        for _, scored in groups:
            scoring.add(scored.group)
        underway.append((step, groups, scoring))
        if len(underway) > 1:
            yield _wait(*underway.popleft())
    yield from (_wait(*each) for each in underway)


def _wait(step: int, groups: Groups, scoring: Scoring) -> Batch:
    return Batch(step, groups, scoring.tables([scored.group for _, scored in groups]))


def read_groups(
    files: Mapping[int, Path], media: MediaSettings, *, limit: int | None
) -> Iterator[tuple[int, Groups]]:
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
