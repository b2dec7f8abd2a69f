"""A report of runs: a folder with the page, the index of what the runs hold, and the files that the page loads.

`Report.update` adds what is new in the runs; called again and again, it follows runs that go on.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from grpo.report.follow import RunFollower
from grpo.report.index import Index, is_report
from grpo.report.page_files import write_page
from grpo.report.thumbnails import strip_file, write_strips
from grpo.run.progress import under_way

logger = logging.getLogger(__name__)


class Report:
    """A report in a folder, which is made anew but for the film strips that are there already."""

    def __init__(self, folder: Path, run_dirs: Sequence[Path]) -> None:
        self.folder, self.lock = folder, Lock()
        self.followers = [RunFollower(number, each, folder) for number, each in enumerate(run_dirs)]
        about = [follower.about() for follower in self.followers]
        names = names_of(run_dirs)
        self._held = _held(folder)
        _clear(folder)
        # The index comes first: by it the folder is known as a report's, also if this process is stopped here.
        self.index = Index(folder, [{"name": name, **each} for name, each in zip(names, about, strict=True)])
        self.page = write_page(folder)

    def update(self) -> int:
        """Add what is new in the runs; return the number of lines that the index has grown by.

        A run that can't be read is raised as the error that it is when the others have been added.
        """
        num_lines, errors = 0, []
        for follower in self.followers:
            try:
                for entry in follower.look():
                    self.index.append(entry)
                    num_lines += 1
            except (OSError, ValueError) as error:
                errors.append(error)
        for error in errors:
            raise error
        return num_lines

    def unread(self) -> list[str]:
        """Return why the files of some steps can't be read, and are not shown."""
        return [reason for follower in self.followers for reason in follower.unread.values()]

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


def _held(folder: Path) -> BinaryIO:
    """Return a file that keeps a folder for one process, until it is closed.

    ValueError if another process writes it, or if it has other files than a report's.
    """
    if folder.is_dir() and any(folder.iterdir()) and not is_report(folder):
        raise ValueError(
            f"--out: {folder} has files in it and is no report; name a folder that is new or empty"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"--out: another process is writing {folder}; name another folder") from error
    except OSError as error:
        # A file system without locks.
        logger.warning("--out: %s has no locks (%s): two reports in it are not noticed", folder, error)
    return file


def _clear(folder: Path) -> None:
    """Remove the data files of an older report."""
    for file in (*folder.glob("data/index.js"), *folder.glob("data/*/*_*.js")):
        file.unlink()


def build(folder: Path, run_dirs: Sequence[Path], *, with_clips: bool = True) -> tuple[Path, dict[str, str]]:
    """Write the report of runs as they are now; return the page, and the reasons for clips that can't be read."""
    with under_way("reading the runs"):
        report = Report(folder, run_dirs)
        report.update()
    for reason in report.unread():
        logger.warning("not shown: %s", reason)
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
