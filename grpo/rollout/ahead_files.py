"""The groups that were sampled ahead, as a part of a checkpoint: a resumed run trains on the very same ones.

Other weights have sampled them than those that the checkpoint holds. They are stored as a run's rollouts are, with
their rewards; prompts and clips are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from grpo.feed.dynamic_sampling import Sampled
from grpo.feed.prompts import Feed, make_batch, rollout_seed
from grpo.groups import Group, LostSample, Prompt, RewardFailure, ScoredGroup
from grpo.media.sampling import MediaSettings
from grpo.rollout.ahead import Ahead
from grpo.run.disk import write_text
from grpo.run.rollout_files import (
    FAILURES,
    SLOT,
    read_columns,
    read_rollouts,
    rollout_files,
    rollout_rows,
    write_rollouts,
)

ABOUT = "ahead.json"


class AheadFiles:
    """The files of what is sampled ahead, of all processes together: any number of them can go on from them."""

    def __init__(self, ahead: Ahead, feed: Feed) -> None:
        self.ahead, self.feed = ahead, feed

    def write(self, folder: Path) -> None:
        """Write the next step's groups, if they were sampled; all processes call it together."""
        found = self.ahead.wait()
        if found is None:
            return
        step, sampled = found
        rows = gather_object(self._rows(sampled))
        lost = gather_object([[self.feed.rank, asdict(each)] for each in sampled.batch.lost])
        if self.feed.rank == 0:
            folder.mkdir()
            write_rollouts(folder, step, rows)
            write_text(folder / ABOUT, json.dumps({"step": step, "lost": lost}) + "\n")

    def read(self, folder: Path) -> None:
        """Have the next step train on this process's share of the groups in a folder, if there is one."""
        if not folder.exists():
            return
        about = json.loads((folder / ABOUT).read_bytes())
        rank, num_processes = self.feed.rank, self.feed.num_processes
        lost = tuple(LostSample(**each) for of, each in about["lost"] if of % num_processes == rank)
        stored = [
            (slot, each)
            for file in rollout_files(folder).values()
            for slot, each in _read(file)
            if slot % num_processes == rank
        ]
        self.ahead.begin(about["step"], lambda: self._sampled(about["step"], stored, lost))

    def _rows(self, sampled: Sampled) -> list[dict[str, Any]]:
        """Return the rows of a step's groups, with their places among those of all processes."""
        rank, num_processes = self.feed.rank, self.feed.num_processes
        return [
            {
                SLOT: rank + place * num_processes,
                FAILURES: json.dumps([asdict(failure) for failure in table.failures]),
                **row,
            }
            for place, group, table in zip(sampled.batch.places, sampled.groups, sampled.tables, strict=True)
            for row in rollout_rows(
                ScoredGroup(group=group, table=table, advantages=(None,) * len(group.rollouts))
            )
        ]

    def _sampled(
        self, step: int, stored: Sequence[tuple[int, ScoredGroup]], lost: tuple[LostSample, ...]
    ) -> Sampled:
        """Return stored groups as if they had just been sampled; one whose clip is gone meanwhile is lost."""
        feed = self.feed
        samples = [scored.group.prompt.sample for _, scored in stored]
        feed.loader.prefetch([sample.clip_source for sample in samples])
        seeds = [rollout_seed(feed.seed, step, slot) for slot, _ in stored]
        batch = make_batch(samples, seeds, feed.loader, feed.render, feed.max_prompt_tokens)
        kept = [stored[index] for index in batch.places]
        places = tuple(slot // feed.num_processes for slot, _ in kept)
        groups = [
            of_prompt(scored.group, prompt) for (_, scored), prompt in zip(kept, batch.prompts, strict=True)
        ]
        tables = [scored.table for _, scored in kept]
        return Sampled(replace(batch, places=places, lost=lost + batch.lost), groups, tables)


def of_prompt(group: Group, prompt: Prompt) -> Group:
    """Return a group with another prompt of the same sample in the place of its own."""
    rollouts = (
        replace(rollout, sample=prompt.sample, clip=prompt.clip, tags=prompt.tags)
        for rollout in group.rollouts
    )
    return Group(prompt=prompt, rollouts=tuple(rollouts))


def _read(file: Path) -> list[tuple[int, ScoredGroup]]:
    """Return the groups of a file and their places. Their clips' frames are not for use."""
    columns = read_columns(file, [SLOT, FAILURES])
    found = []
    for row, scored in read_rollouts(file, MediaSettings()):
        failures = tuple(RewardFailure(**each) for each in json.loads(columns[FAILURES][row]))
        table = replace(scored.table, failures=failures)
        found.append((columns[SLOT][row], replace(scored, table=table)))
    return found
