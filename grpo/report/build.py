"""A report of runs: a folder with the page, the index of what the runs hold, and the files that the page loads.

`Report.update` adds what is new in the runs; called again and again, it follows runs that go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from threading import Lock

from grpo.report.follow import RunFollower
from grpo.report.index import Index
from grpo.report.page_files import write_page
from grpo.report.thumbnails import strip_file, write_strips


class Report:
    """A report in a folder, which is made anew but for the film strips that are there already."""

    def __init__(self, folder: Path, run_dirs: Sequence[Path]) -> None:
        self.folder, self.lock = folder, Lock()
        self.followers = [RunFollower(number, each, folder) for number, each in enumerate(run_dirs)]
        shutil.rmtree(folder / "data", ignore_errors=True)
        self.page = write_page(folder)
        about = [follower.about() for follower in self.followers]
        names = names_of(run_dirs)
        self.index = Index(folder, [{"name": name, **each} for name, each in zip(names, about, strict=True)])

    def update(self) -> int:
        """Add what is new in the runs; return the number of lines that the index has grown by."""
        num_lines = 0
        for follower in self.followers:
            for entry in follower.look():
                self.index.append(entry)
                num_lines += 1
        return num_lines

    def write_clips(self) -> dict[str, str]:
        """Write the strips of all clips; return the reason for each that can't be read, which the index names too."""
        failed: dict[str, str] = {}
        for follower in self.followers:
            failed |= write_strips(self.folder, follower.clips.values(), follower.config)
        for name, reason in failed.items():
            self.index.append({"clip": name, "reason": reason})
        return failed

    def write_clip(self, name: str) -> Path | None:
        """Return the file of a strip, which is written when it is first asked for; None if there is none."""
        file = strip_file(self.folder, name)
        with self.lock:
            for follower in self.followers:
                seen = None if file.exists() else follower.clips.get(name)
                failed = write_strips(self.folder, [seen], follower.config) if seen else {}
                for reason in failed.values():
                    self.index.append({"clip": name, "reason": reason})
        return file if file.exists() else None


def build(folder: Path, run_dirs: Sequence[Path], *, with_clips: bool = True) -> tuple[Path, dict[str, str]]:
    """Write the report of runs as they are now; return the page, and the reasons for clips that can't be read."""
    report = Report(folder, run_dirs)
    report.update()
    failed = report.write_clips() if with_clips else {}
    report.index.write_copy()
    return report.page, failed


def names_of(run_dirs: Sequence[Path]) -> list[str]:
    """Return short names of runs: their folders' names, or where two are alike what differs in their paths."""
    resolved = [each.resolve() for each in run_dirs]
    if len({each.name for each in resolved}) == len(resolved):
        return [each.name for each in resolved]
    base = commonpath(resolved)
    return [str(each.relative_to(base)) for each in resolved]
