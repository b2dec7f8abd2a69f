"""How much memory a process holds together with all that it has started, and an end to all of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress

import psutil


def children(pid: int) -> list[int]:
    """What a process has started and what lives; on Linux only, elsewhere nothing."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # psutil would read the files of all processes.
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:  # and those that are found meanwhile
        found += children(each)
    return found


def is_above(limit_bytes: float, pids: Sequence[int]) -> bool:
    """Whether processes hold more than that together; what they share, as forks do, counts once."""
    if sum(map(rss_bytes, pids)) <= limit_bytes:
        return False
    return len(pids) == 1 or sum(map(_share_bytes, pids)) > limit_bytes  # slower to find out


def rss_bytes(pid: int) -> int:
    """Memory that a process holds, without its children's; 0 for one that is gone."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _share_bytes(pid: int) -> int:
    """What a process holds alone, and its share of what it has in common with others."""
    try:
        return psutil.Process(pid).memory_full_info().pss
    except psutil.Error:
        return 0


def kill_group(pid: int) -> None:
    """Kill what a process leads, itself included, if it leads something."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kill a process, its group and all below it, in the group or not."""
    found = tree(pid)
    kill_group(pid)
    for each in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)
