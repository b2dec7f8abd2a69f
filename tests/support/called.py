"""Functions for the tests of the pool of workers, which behave as other people's code does sooner or later.

In a file of their own: what the workers' processes import should be little.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from grpo.workers.worker import Function


def load(*functions: Callable[[Any], Any]) -> list[Function]:
    return [Function(call=each, is_resident=Function(call=each).is_async) for each in functions]


def refuse() -> list[Function]:
    raise ValueError("no such function")


def square(number: int) -> int:
    return number * number


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def spin(seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return os.getpid()


def ignore_sigterm(seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(seconds)


def divide(by: int) -> float:
    return 1 / by


def give_a_function(_: None) -> Callable[[], None]:
    return lambda: None


def modules(_: None) -> set[str]:
    return {*sys.modules}


async def exit_on_zero(number: int) -> int:
    await asyncio.sleep(0.05)
    if number == 0:
        os._exit(3)
    await asyncio.sleep(0.2)
    return number
