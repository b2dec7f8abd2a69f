"""The groups that were sampled ahead, as a part of a checkpoint: a resumed run trains on the very same ones.

Other weights have sampled them than those that the checkpoint holds. They are stored as a run's rollouts are, with
their rewards; prompts and clips are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from grpo.feed.dynamic_sampling import Sampled
from grpo.feed.prompts import Feed, make_batch, rollout_seed
from grpo.groups import Batch, Group, LostSample, Prompt, RewardFailure, RewardTable, ScoredGroup
from grpo.media.sampling import MediaSettings
from grpo.rollout.ahead import Ahead
from grpo.rollout.partial import Begun, PartialRollouts
from grpo.run.disk import write_text
from grpo.run.rollout_files import (
    FAILURES,
    OF_STEP,
    SLOT,
    read_columns,
    read_rollouts,
    rollout_files,
    rollout_rows,
    write_rollouts,
)

ABOUT = "ahead.json"
NOTHING = Sampled(Batch(prompts=(), seeds=(), places=(), lost=()), [], [])

UNFINISHED = "unfinished"
"""The folder of the groups that are not complete."""


class Stored(NamedTuple):
    """A group of a checkpoint."""

    slot: int
    """The place of the question among those of its step, of all processes."""
    step: int
    scored: ScoredGroup


class AheadFiles:
    """The files of what is sampled ahead, of all processes together: any number of them can go on from them."""

    def __init__(self, ahead: Ahead[Sampled], feed: Feed, partial: PartialRollouts | None = None) -> None:
        """partial: has groups that are not complete, which are stored too."""
        self.ahead, self.feed, self.partial = ahead, feed, partial

    def write(self, folder: Path) -> None:
        """Write the next step's groups, if they were sampled, and those that are not complete.

        All processes call it together, and all of them have sampled ahead, or none has.
        """
        step, sampled = self.ahead.wait() or (None, NOTHING)
        rows = gather_object(self._rows(step or 0, sampled))
        unfinished = gather_object(self._unfinished())
        if step is None and not unfinished:
            return
        late = gather_object([self.partial.num_finished_at_once if self.partial is not None else 0])
        lost = gather_object([[self.feed.rank, asdict(each)] for each in sampled.batch.lost])
        if self.feed.rank == 0:
            folder.mkdir()
            write_rollouts(folder, step or 0, rows)
            write_rollouts(folder / UNFINISHED, step or 0, unfinished)
            about = {"step": step, "lost": lost, "finished_at_once": sum(late)}
            write_text(folder / ABOUT, json.dumps(about) + "\n")

    def read(self, folder: Path) -> None:
        """Have the next step train on this process's share of the groups in a folder, if there is one.

        If only groups that are not complete are there, the next step goes on with them.
        """
        if not folder.exists():
            return
        about = json.loads((folder / ABOUT).read_bytes())
        rank, num_processes = self.feed.rank, self.feed.num_processes
        lost = tuple(LostSample(**each) for of, each in about["lost"] if of % num_processes == rank)
        complete, unfinished = self._own(folder), self._own(folder / UNFINISHED)
        if self.partial is not None and rank == 0:
            self.partial.num_finished_at_once = about["finished_at_once"]
        if about["step"] is None:
            self._sampled(complete, unfinished, lost)
        else:
            self.ahead.begin(about["step"], lambda: self._sampled(complete, unfinished, lost))

    def _own(self, folder: Path) -> list[Stored]:
        """Return this process's share of the groups in a folder."""
        found = [each for file in rollout_files(folder).values() for each in _read(file)]
        return [each for each in found if each.slot % self.feed.num_processes == self.feed.rank]

    def _rows(self, step: int, sampled: Sampled) -> list[dict[str, Any]]:
        """Return the rows of a step's groups."""
        return [
            row
            for place, group, table in zip(sampled.batch.places, sampled.groups, sampled.tables, strict=True)
            for row in self._rows_of(step, place, group, table)
        ]

    def _unfinished(self) -> list[dict[str, Any]]:
        """Return the rows of the groups that are not complete."""
        begun = self.partial.begun if self.partial is not None else ()
        return [
            row
            for each in begun
            for row in self._rows_of(
                each.step,
                each.place,
                each.group,
                RewardTable(columns={}, parts={}, totals=(None,) * len(each.group.rollouts), failures=()),
            )
        ]

    def _rows_of(self, step: int, place: int, group: Group, table: RewardTable) -> list[dict[str, Any]]:
        """Return the rows of a group, with its place among those of all processes."""
        about = {
            SLOT: self.feed.rank + place * self.feed.num_processes,
            OF_STEP: step,
            FAILURES: json.dumps([asdict(failure) for failure in table.failures]),
        }
        scored = ScoredGroup(group=group, table=table, advantages=(None,) * len(group.rollouts))
        return [{**about, **row} for row in rollout_rows(scored)]

    def _sampled(
        self, complete: Sequence[Stored], unfinished: Sequence[Stored], lost: tuple[LostSample, ...]
    ) -> Sampled:
        """Return stored groups as if they had just been sampled; one whose clip is gone meanwhile is lost."""
        batch, groups, kept = self._made_anew(complete)
        waiting, begun, of = self._made_anew(unfinished)
        if self.partial is not None:
            self.partial.begun = [
                Begun(group=group, seed=seed, step=each.step, place=place)
                for group, seed, each, place in zip(begun, waiting.seeds, of, waiting.places, strict=True)
            ]
        batch = replace(batch, lost=lost + batch.lost + waiting.lost)
        return Sampled(batch, groups, [each.scored.table for each in kept])

    def _made_anew(self, stored: Sequence[Stored]) -> tuple[Batch, list[Group], list[Stored]]:
        """Return stored groups with prompts that are made anew, and their batch."""
        feed = self.feed
        samples = [each.scored.group.prompt.sample for each in stored]
        feed.loader.prefetch([source for sample in samples for source in sample.sources])
        seeds = [rollout_seed(feed.seed, each.step, each.slot) for each in stored]
        batch = make_batch(samples, seeds, feed.loader, feed.render, feed.max_prompt_tokens)
        kept = [stored[index] for index in batch.places]
        groups = [
            of_prompt(each.scored.group, prompt) for each, prompt in zip(kept, batch.prompts, strict=True)
        ]
        return replace(batch, places=tuple(each.slot // feed.num_processes for each in kept)), groups, kept


def of_prompt(group: Group, prompt: Prompt) -> Group:
    """Return a group with another prompt of the same sample in the place of its own."""
    rollouts = (
        replace(rollout, sample=prompt.sample, clip=prompt.clip, media=prompt.media, tags=prompt.tags)
        for rollout in group.rollouts
    )
    return Group(prompt=prompt, rollouts=tuple(rollouts))


def _read(file: Path) -> list[Stored]:
    """Return the groups of a file. Their clips' frames are not for use."""
    columns = read_columns(file, [SLOT, OF_STEP, FAILURES])
    found = []
    for row, scored in read_rollouts(file, MediaSettings()):
        failures = tuple(RewardFailure(**each) for each in json.loads(columns[FAILURES][row]))
        scored = replace(scored, table=replace(scored.table, failures=failures))
        found.append(Stored(columns[SLOT][row], columns[OF_STEP][row], scored))
    return found
