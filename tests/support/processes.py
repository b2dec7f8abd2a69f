"""What tests of other processes share."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(is_so: Callable[[], object], timeout_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up_at, "it did not come about in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Neither ended nor a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
