"""Process trees on Linux: which processes belong to one, how much memory they hold, and how to kill them all."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Return the ids of the live processes that a process has started."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # psutil would read the files of all processes.
            with open(f"/proc/{pid}/task/{thread}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
    return found


def tree(pid: int) -> list[int]:
    """Return the ids of a process and of all below it."""
    found = [pid]
    for each in found:  # the loop goes on over what it appends
        found += children(each)
    return found


def is_above(limit_bytes: float, pids: Sequence[int]) -> bool:
    """Whether processes together hold more memory than the limit; what they share, as forks do, counts once."""
    if sum(map(rss_bytes, pids)) <= limit_bytes:
        return False
    # The shares are slower to find out.
    return len(pids) == 1 or sum(map(_pss_bytes, pids)) > limit_bytes


def rss_bytes(pid: int) -> int:
    """Return the memory that a process holds, without its children's; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:  # a tenth of psutil's time
            return int(file.read().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def _pss_bytes(pid: int) -> int:
    """Return the memory that a process holds alone, and its share of what it has in common with others."""
    try:
        return psutil.Process(pid).memory_full_info().pss
    except psutil.Error:
        return 0


def are_sleeping(pids: Sequence[int]) -> bool:
    """Whether most of these processes sleep, waiting for something other than a core."""
    num_sleeping = 0
    for pid in pids:
        with suppress(psutil.Error):
            num_sleeping += psutil.Process(pid).status() != psutil.STATUS_RUNNING
    return 2 * num_sleeping > len(pids)


def has_free_memory() -> bool:
    """Whether a fifth of the machine's memory is free, which a few more workers are not likely to fill."""
    memory = psutil.virtual_memory()
    return memory.available > 0.2 * memory.total


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def kill_group(pid: int) -> None:
    """Kill a process with the group that it leads, if it leads one."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kill a process, its group and all below it, in the group or not."""
    found = tree(pid)
    kill_group(pid)
    kill_all(found)


def adopt_orphans() -> None:
    """Make the caller the parent of every process below it whose own parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send the caller a signal as soon as its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
