"""Whether more workers would help: only where those that there are wait, on a machine with free memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from rewards.scoring.workers.handles import WorkerHandle

LOOK_S = 0.04


class LoadMeter:
    """Looks at what busy workers do, now and then."""

    def __init__(self) -> None:
        self._looked_at = 0.0

    def are_waiting(self, workers: Sequence[WorkerHandle]) -> bool:
        """Whether they have used less than half of the cores since the last look, and not for want of one."""
        now = time.monotonic()
        elapsed_s = now - self._looked_at
        if elapsed_s < LOOK_S or not all(worker.pid for worker in workers):
            return False
        used_s, num_ready = 0.0, 0
        for worker in workers:
            with suppress(psutil.Error):
                process = psutil.Process(worker.pid)
                times = process.cpu_times()
                used_s += times.user + times.system - worker.cpu_s
                worker.cpu_s = times.user + times.system
                num_ready += process.status() == psutil.STATUS_RUNNING  # on a core, or in the queue for one
        is_first_look, self._looked_at = self._looked_at == 0.0, now
        return (
            not is_first_look
            and used_s < 0.5 * elapsed_s * (os.cpu_count() or 1)
            and num_ready <= len(workers) // 2
        )


def has_free_memory() -> bool:
    """A fifth of the machine's, which another few workers are not likely to fill."""
    memory = psutil.virtual_memory()
    return memory.available > 0.2 * memory.total
