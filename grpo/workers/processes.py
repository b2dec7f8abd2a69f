"""Process trees on Linux: which processes belong to one, how much memory they hold, and how to kill them all.

    python -m grpo.workers.processes MODULE ARGUMENT ...

runs a module in a process that is asked to end (SIGINT) when its parent does, however that ends, and by nothing else: a
scheduler's SIGTERM and SIGUSR1, which it may send to all processes of a run, wait there for good.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MAX_PROCESSES = 100_000
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
    for each in found:
        # The loop goes on over what it appends.
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
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            # A tenth of psutil's time.
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


def kill_group(pid: int) -> None:
    """Kill the group that a process leads or has led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kill a process and all below it with their groups, however fast they start others."""
    found: set[int] = set()
    # One that is stopped starts no others, and keeps those below it in the tree.
    while len(found) < MAX_PROCESSES and (others := {*tree(pid)} - found):
        _send(others, signal.SIGSTOP)
        found |= others
    _send(found, signal.SIGKILL)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes and to their groups, but for the group of the caller."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(pid)
            if group == os.getpgrp():
                os.kill(pid, number)
            else:
                os.killpg(group, number)


def adopt_orphans() -> None:
    """Make the caller the parent of every process below it whose own parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send the caller a signal as soon as its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def block_stops() -> None:
    """Block a scheduler's signals in the caller and in all that it starts, whatever handlers these set."""
    # Python unblocks SIGTERM where it starts its tracker of shared memory, which those below this process use too.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))


if __name__ == "__main__":
    end_with_parent(signal.SIGINT)
    block_stops()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
