"""A run's folder as entries of the index: what is new in it since the last look, also while the run goes on.

Nothing is locked and nothing in the run's folder is changed. A row that is only half written, and a file that is not
complete, is left for the next look.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from grpo.config.load import read_config
from grpo.config.schema import Config
from grpo.report.page_files import finite, write_data
from grpo.report.step_page import step_page
from grpo.report.thumbnails import SeenClip
from grpo.report.tokens import Pieces, find_tokenizer
from grpo.run.folder import RunDir, check_is_run, read_row
from grpo.run.rollout_files import ANSWERED, LEARNER_LOGPROBS, read_columns, read_rollouts, rollout_files
from grpo.run.trend_rules import warnings_of_run

Kind = Literal["rollouts", "answers"]
Entry = dict[str, Any]


class RunFollower:
    """A run that is followed: `look` yields what has been added to it, and writes the files of its steps."""

    def __init__(self, number: int, run_dir: Path, folder: Path) -> None:
        """Follow a run, as number so and so of the report in a folder. ValueError if it is no run's folder."""
        self.number, self.run, self.folder = number, RunDir(run_dir), folder
        check_is_run(run_dir)
        self.config = read_config(self.run.config_file)
        tokenizer = find_tokenizer(str(self.run.final), self.config.model.path)
        self.pieces = Pieces(tokenizer) if tokenizer else None
        self.metrics = GrowingFile(self.run.metrics_file)
        self.failures = GrowingFile(self.run.failures_file)
        self.rows: list[Entry] = []
        self.trends: list[Entry] = []
        self.stamps: dict[tuple[Kind, int], tuple[int, int]] = {}
        self.unread: dict[tuple[Kind, int], str] = {}
        """Why the files of some steps can't be read."""
        self.clips: dict[str, SeenClip] = {}
        """The clips that were met, by the name of their strip."""

    def about(self) -> Entry:
        """Return what the index says about the run from the start."""
        rewards = {
            name: {"weight": spec.weight, "only_if": spec.only_if, "only_unless": spec.only_unless}
            for name, spec in self.config.rewards.items()
        }
        return {
            "path": str(self.run.path),
            "num_steps": self.config.num_steps,
            "rewards": finite(rewards),
            "limits": token_limits(self.config),
            "has_pieces": self.pieces is not None,
            "config": self.run.config_file.read_text(encoding="utf-8", errors="replace"),
        }

    def look(self) -> Iterator[Entry]:
        """Yield the entries of what is new."""
        for what, file in (("metrics", self.metrics), ("failures", self.failures)):
            kept, rows = file.read()
            if what == "metrics":
                self.rows = [row for row in self.rows if kept is None or row["step"] <= kept] + rows
            if kept is not None:
                yield {"forget": self.number, "what": what, "after": kept}
            if rows:
                yield {what: self.number, "rows": rows}
        yield from self._new_trends()
        yield from self._look_at("rollouts", self.run.rollouts)
        yield from self._look_at("answers", self.run.answers)

    def _new_trends(self) -> Iterator[Entry]:
        """Yield the warnings about the run, if they are others than before."""
        weights = {name: spec.weight for name, spec in self.config.rewards.items()}
        group_size = self.config.rollout.group_size
        trends = [trend.as_dict() for trend in warnings_of_run(self.rows, weights, group_size)]
        if trends != self.trends:
            self.trends = trends
            yield {"warnings": self.number, "list": trends}

    def _look_at(self, kind: Kind, folder: Path) -> Iterator[Entry]:
        """Yield the entries of new files of steps, and of those that are gone."""
        files = rollout_files(folder)
        known = {step for of, step in self.stamps if of == kind}
        if gone := known - files.keys():
            yield {"forget": self.number, "what": kind, "after": min(gone) - 1}
            for key in [key for key in self.stamps if key[0] == kind and key[1] >= min(gone)]:
                del self.stamps[key]
                self.unread.pop(key, None)
        for step, file in files.items():
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if self.stamps.get((kind, step)) != stamp:
                try:
                    yield self._step(kind, step, file)
                    self.unread.pop((kind, step), None)
                except ValueError as error:
                    reason = self.unread[kind, step] = str(error)
                    row = {"step": step, "kind": "report", "reason": reason}
                    yield {"failures": self.number, "rows": [row]}
                self.stamps[kind, step] = stamp

    def _step(self, kind: Kind, step: int, file: Path) -> Entry:
        """Write the file of a step's groups, and return the step's entry."""
        groups = [scored for _, scored in read_rollouts(file, self.config.media)]
        stored = read_columns(file, (LEARNER_LOGPROBS, *ANSWERED))
        page = step_page(groups, self.config.rewards, self.pieces, stored.get(LEARNER_LOGPROBS, ()))
        self.clips |= page.clips
        name = f"{self.number}/{kind}_{step:06d}"
        write_data(self.folder, name, page.content)
        answered = {each: stored[each] for each in ANSWERED if each in stored}
        return {kind: self.number, "step": step, "file": name, **page.columns, **answered}


class GrowingFile:
    """A JSON Lines file that grows at its end, or is written anew without its last rows when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.inode: int | None = None
        self.seen: list[tuple[int, int]] = []
        """The step and the checksum of each row that was read."""

    def read(self) -> tuple[int | None, list[Entry]]:
        """Return the new rows, behind the last step that still counts where rows that were read are gone."""
        if not self.path.exists():
            return None, []
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            is_same = self.inode in (None, stat.st_ino) and stat.st_size >= self.offset
            start = file.seek(self.offset if is_same else 0)
            *lines, _ = file.read().split(b"\n")
        self.inode = stat.st_ino
        self.offset = start + sum(len(line) + 1 for line in lines)
        rows = [read_row(line, str(self.path)) for line in lines]
        marks = [(int(row["step"]), zlib.crc32(line)) for row, line in zip(rows, lines, strict=True)]
        if is_same:
            self.seen += marks
            return None, finite(rows)
        num_kept = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.seen, marks, strict=False))
        )
        lost = [step for step, _ in self.seen[num_kept:]]
        self.seen = marks
        if not lost:
            return None, finite(rows[num_kept:])
        # Rows of a step that is taken back in part come again.
        return min(lost) - 1, finite([row for row in rows if row["step"] >= min(lost)])


def token_limits(config: Config) -> Entry | None:
    """Return the bounds of the ratio of learner to engine beyond which the loss caps or leaves out a token.

    None where the loss does not weigh by that ratio.
    """
    loss = config.loss
    if not loss.vllm_importance_sampling_correction:
        return None
    return {
        "mode": loss.vllm_importance_sampling_mode,
        "clip": [loss.vllm_importance_sampling_clip_min, loss.vllm_importance_sampling_clip_max],
    }
