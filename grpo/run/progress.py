"""A sign of what a run is doing while it has no step to show: no more than a few seconds pass in silence."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from threading import Event, Thread
from time import time

from tqdm import tqdm

TERMINAL_S, LOG_S = (2.0, 1.0), (5.0, 5.0)
"""The seconds before a sign is shown for the first time, and between it and the next. A log keeps every one."""


def say_anything() -> None:
    """Let this process print texts that the terminal's encoding lacks, as escapes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line above what is under way."""
    with tqdm.external_write_mode():
        print(text, flush=True)


@contextmanager
def while_read() -> Iterator[None]:
    """End the process in silence if what reads its output stops before the end, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Else Python would try once more at its exit to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _reader_is_gone() -> bool:
    """Whether it is the output that nobody reads any more, and not a pipe of the process's own."""
    poll = select.poll()
    # Errors are reported unasked.
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def under_way(what: str, *, is_shown: bool = True) -> Iterator[None]:
    """Show on stderr what is being done and for how long, if it takes longer than a moment, until the block ends."""
    done, begun = Event(), time()
    first_s, next_s = TERMINAL_S if sys.stderr.isatty() else LOG_S

    def show() -> None:
        if done.wait(first_s):
            return
        with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:
            bar.start_t = begun
            while not done.wait(next_s):
                bar.refresh()

    shown = Thread(target=show, daemon=True)
    if is_shown:
        shown.start()
    try:
        yield
    finally:
        done.set()
        if is_shown:
            shown.join()
