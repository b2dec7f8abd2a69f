"""The index of a report: an append-only file of JSON lines, which the page reads on from where it stopped.

Its first line tells the runs. Each other line adds something of a run, or takes back what a resumed run has removed:

- `{"metrics": RUN, "rows": [...]}`, `{"failures": RUN, "rows": [...]}`: rows of these files
- `{"rollouts": RUN, "step": S, ...}`, `{"answers": RUN, "step": S, ...}`: what `step_page.py` says about a step's
  completions, in the place of an earlier line of the same step
- `{"forget": RUN, "what": "metrics", "after": S}`: rows or steps above S are no more
- `{"warnings": RUN, "list": [...]}`: what `trend_rules.py` says of the run, in the place of what it said before
- `{"clip": NAME, "reason": "..."}`: a clip's frames can't be shown

A browser that opens the page from the disk finds the same lines in `data/index.js`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from grpo.report.page_files import json_of, write_data

INDEX = "index.jsonl"
"""The name of the index in a report's folder."""
FORMAT = 1
"""The version of the lines, which the page compares with its own."""
HEAD = b'{"format":'
"""How an index begins."""


class Index:
    """An index that begins anew with its runs and grows at its end alone."""

    def __init__(self, folder: Path, runs: Iterable[Mapping[str, Any]]) -> None:
        self.folder, self.lock = folder, Lock()
        folder.mkdir(parents=True, exist_ok=True)
        # Another file, not the same one emptied: a page that reads on in the old one notices.
        fresh = self.file.with_name(f".{self.file.name}.partial")
        fresh.write_bytes(_line({"format": FORMAT, "runs": list(runs)}))
        os.replace(fresh, self.file)

    @property
    def file(self) -> Path:
        return self.folder / INDEX

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry as one line."""
        with self.lock, self.file.open("ab") as file:
            file.write(_line(entry))

    def write_copy(self) -> None:
        """Write the lines as the script that a page opened from the disk reads."""
        write_data(self.folder, "index", self.file.read_text(encoding="ascii"))


def is_report(folder: Path) -> bool:
    """Whether a folder is a report's: it has an index that begins as one."""
    file = folder / INDEX
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(HEAD)) == HEAD


def _line(entry: Mapping[str, Any]) -> bytes:
    return json_of(entry).encode("ascii") + b"\n"
