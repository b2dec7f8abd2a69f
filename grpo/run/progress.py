"""A sign of what a run is doing while it has no step to show: no more than a few seconds pass in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from threading import Event, Thread
from time import time

from tqdm import tqdm

QUIET_S = 2.0


def say_anything() -> None:
    """Let this process print texts that the terminal's encoding lacks, as escapes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line above what is under way."""
    with tqdm.external_write_mode():
        print(text, flush=True)


@contextmanager
def under_way(what: str, *, is_shown: bool = True) -> Iterator[None]:
    """Show what is being done and for how long, if it takes longer than a moment, until the block ends."""
    done, begun = Event(), time()

    def show() -> None:
        if done.wait(QUIET_S):
            return
        with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:
            bar.start_t = begun
            # A file keeps every refreshed line.
            while not done.wait(1.0 if sys.stderr.isatty() else 5.0):
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
