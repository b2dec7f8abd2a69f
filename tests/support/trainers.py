"""Training runs and commands in processes of their own, which tests stop and kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.launched import be_one


def start_trainer(
    arguments: Sequence[str], log: Path, before: Callable[[], object] | None = None
) -> BaseProcess:
    """A training run, as `start` starts what it is told."""
    return start(["grpo/train.py", *arguments], log, before)


def start(words: Sequence[str], log: Path, before: Callable[[], object] | None = None) -> BaseProcess:
    """A fork of a process that has imported everything. before: what it does first, a function of a module."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    process = context.Process(target=_live, args=([*words], dict(os.environ), str(log), before))
    process.start()
    return process


def _live(
    words: list[str], environment: dict[str, str], log: str, before: Callable[[], object] | None
) -> None:
    if before is not None:
        before()
    be_one(words, environment, log)
