"""What a terminal shows of a run that goes on: its figures stand at the bottom, and whatever is printed scrolls above.

Elsewhere (a file, a pipe, a CI) each step is a line. The bottom lines lie outside of the terminal's scrolling region.
So they need not know what others print, and any process may: engines and other ranks write where they always do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from threading import Event, Lock, Thread
from time import monotonic
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from grpo.groups import differ
from grpo.run.progress import say
from grpo.run.standing import Figure, Standing, duration

REFRESH_S = 1.0
"""The seconds between two looks at the terminal's size, and at how long the step has taken."""
MIN_COLUMNS, MIN_LINES = 40, 12
"""The smallest terminal that has room for the view."""
CELL_COLUMNS = 36
"""The width of a figure with its curve."""
CURVE_COLUMNS = 14
BARS = "▁▂▃▄▅▆▇█"
MAX_WARNINGS = 4

SAVE, RESTORE = "\x1b7", "\x1b8"
"""The sequences that keep the cursor and bring it back (DECSC, DECRC)."""
WHOLE = "\x1b[r"
"""The sequence that lets the whole screen scroll again, and puts the cursor into a corner (DECSTBM)."""


class Display(Protocol):
    """Whatever shows a run's standing."""

    def show(self, standing: Standing) -> None: ...

    def close(self) -> None: ...


class LineDisplay:
    """A display of a line for each step."""

    def show(self, standing: Standing) -> None:
        say(standing.line)

    def close(self) -> None:
        """Leave what was printed."""


class BottomDisplay:
    """A display at the bottom of the terminal that a file descriptor leads to, drawn anew every second.

    A frame is one write, which no other process's output comes between.
    """

    def __init__(self, title: str, *, hours_of: str, fd: int, encoding: str = "utf-8") -> None:
        """Show nothing yet. hours_of: what the processes' hours are hours of."""
        self.title, self.hours_of, self.fd, self.encoding = title, hours_of, fd, encoding
        self.standing: Standing | None = None
        self.since_s = monotonic()
        self.size, self.height = os.terminal_size((0, 0)), 0
        """The terminal's size, and the number of lines of the view, as they were when it was drawn."""
        self.lock, self.ends = Lock(), Event()
        self.thread = Thread(target=self._refresh, name="terminal", daemon=True)

    def show(self, standing: Standing) -> None:
        """Show where the run stands, from now on."""
        is_first = self.standing is None
        self.standing, self.since_s = standing, monotonic()
        self._draw()
        if is_first:
            self.thread.start()

    def close(self) -> None:
        """Give the terminal back, with the latest figures as lines that others follow."""
        if self.standing is None or self.ends.is_set():
            return
        self.ends.set()
        self.thread.join()
        if not self.height:
            # The terminal was too small, or gone, from the start.
            return
        last = self._rendered(under_way_s=None)
        with self.lock:
            self._write(self._erased() + "\n" + "".join(f"{line}\n" for line in last))

    def _refresh(self) -> None:
        while not self.ends.wait(REFRESH_S):
            self._draw()

    def _draw(self) -> None:
        """Draw the view; a terminal of another size, or a view that has grown, is prepared for it before."""
        with self.lock:
            if (size := _size(self.fd)) is None:
                return
            lines = self._rendered(under_way_s=monotonic() - self.since_s, columns=size.columns)
            lines = lines[: size.lines // 2]
            text = ""
            if size != self.size or len(lines) > self.height:
                text = self._erased() if self.height else ""
                self.size, self.height = size, max(len(lines), min(self.height, size.lines // 2))
                text += _moved_up(self.height)
            # In every frame: another process may have let the whole terminal scroll, and the cursor into the view.
            text += _confined(self.height, size.lines)
            top = size.lines - self.height + 1
            padded = [*lines, *[""] * (self.height - len(lines))]
            frame = "".join(f"\x1b[{top + index};1H\x1b[2K{line}" for index, line in enumerate(padded))
            self._write(text + SAVE + frame + RESTORE)

    def _erased(self) -> str:
        """Return what removes the view, and leaves the cursor where it is."""
        size = _size(self.fd) or self.size
        rows = range(max(1, self.size.lines - self.height + 1), min(self.size.lines, size.lines) + 1)
        return SAVE + WHOLE + "".join(f"\x1b[{row};1H\x1b[2K" for row in rows) + RESTORE

    def _rendered(self, *, under_way_s: float | None, columns: int | None = None) -> list[str]:
        assert self.standing is not None
        has_unicode = self.encoding.lower().startswith("utf")
        console = Console(
            # The file's encoding tells rich which characters it may draw with.
            # One column is left free: a terminal would begin a new line after the last.
            file=TextIOWrapper(BytesIO(), encoding=self.encoding),
            width=(columns or self.size.columns) - 1, force_terminal=True, legacy_windows=False,
            highlight=False, emoji=False, markup=False,
        )  # fmt: skip
        view = view_of(self.standing, self.title, self.hours_of, under_way_s, console.width, has_unicode)
        with console.capture() as captured:
            console.print(view)
        text = captured.get()
        # Rich cuts words short with an ellipsis wherever it draws.
        return (text if has_unicode else text.replace("…", ".")).splitlines()

    def _write(self, text: str) -> None:
        left = text.encode(self.encoding, errors="replace")
        # The terminal may be gone, and the run goes on.
        with suppress(OSError):
            while left:
                left = left[os.write(self.fd, left) :]


def display_for(
    title: str, *, hours_of: str, is_live: bool, environment: Mapping[str, str] = os.environ
) -> Display:
    """Return the bottom of the terminal that output goes to, if there is one and it is wanted; else lines."""
    plain = environment.get("CI") or environment.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty()
    if not is_live or plain or _size(sys.stdout.fileno()) is None:
        return LineDisplay()
    encoding = sys.stdout.encoding
    return BottomDisplay(title, hours_of=hours_of, fd=sys.stdout.fileno(), encoding=encoding)


def release_terminal() -> None:
    """Let the whole terminal scroll again, for a process that is about to end without closing its display."""
    with suppress(OSError):
        if os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb":
            os.write(1, (SAVE + WHOLE + RESTORE + "\x1b[J").encode())


def view_of(
    standing: Standing, title: str, hours_of: str, under_way_s: float | None, width: int, has_unicode: bool
) -> RenderableType:
    """Return a run's standing for rich to draw: a bar, the figures in columns, held-out scores, and warnings."""
    if under_way_s is not None and standing.step < standing.num_steps:
        title = f"{title}: step {standing.step + 1} for {duration(round(under_way_s))}"
    parts: list[RenderableType] = [Rule(Text(title), style="dim"), _head(standing, hours_of, width)]
    if standing.figures:
        parts.append(_cells(standing.figures, standing.step, width, has_unicode))
    if standing.held_out:
        parts.append(_cells(standing.held_out, standing.step, width, has_unicode, prefix="held-out "))
    warnings = standing.warnings[:MAX_WARNINGS]
    parts += [Text(f"warning: {each.text}", style="yellow") for each in warnings]
    if more := len(standing.warnings) - len(warnings):
        parts.append(Text(f"and {more} more warnings: egogrpo report --text", style="yellow"))
    return Group(*parts)


def curve(values: tuple[float, ...], columns: int = CURVE_COLUMNS) -> str:
    """Return the course of a figure as bars, each the mean of as many values as the others'."""
    columns = min(columns, len(values))
    edges = [len(values) * index // columns for index in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high, top = min(means), max(means), len(BARS) - 1
    if not differ(low, high):
        return BARS[0] * columns
    return "".join(BARS[round((mean - low) / (high - low) * top)] for mean in means)


def _head(standing: Standing, hours_of: str, width: int) -> RenderableType:
    words = []
    if standing.step_s is not None:
        words.append(f"{duration(standing.step_s)} a step")
    if standing.left_s is not None and standing.step < standing.num_steps:
        words.append(f"{duration(standing.left_s)} left")
    words.append(f"{standing.process_hours:.3g} {hours_of}")
    head = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=standing.num_steps, completed=standing.step, width=max(8, width // 6))
    head.add_row(Text(f"step {standing.step} of {standing.num_steps}", style="bold"), bar, "  ".join(words))
    return head


def _cells(
    figures: tuple[Figure, ...], step: int, width: int, has_unicode: bool, prefix: str = ""
) -> RenderableType:
    """Return a grid with a figure in each cell: its name, its latest value, its step if that is another, its course."""
    num_columns = max(1, min(len(figures), width // CELL_COLUMNS))
    grid = Table.grid(padding=(0, 1, 0, 0))
    rows = [figures[index : index + num_columns] for index in range(0, len(figures), num_columns)]
    for row in rows:
        cells = []
        for figure in row:
            course = curve(figure.values) if has_unicode and len(figure.values) > 1 else ""
            at = f" at {figure.steps[-1]}" if figure.steps[-1] != step or prefix else ""
            value = Text.assemble((figure.text, "bold"), (at, "dim"))
            cells += [Text(prefix + figure.label, style="dim"), value, Text(course, style="cyan")]
        grid.add_row(*cells)
    return grid


def _size(fd: int) -> os.terminal_size | None:
    """Return a terminal's size; None for one that is too small, or gone, or does not say it."""
    with suppress(OSError):
        size = os.get_terminal_size(fd)
        if size.columns >= MIN_COLUMNS and size.lines >= MIN_LINES:
            return size
    return None


def _moved_up(height: int) -> str:
    """Return what moves the terminal's text and its cursor up, away from so many lines at the bottom."""
    # ESC D (IND) keeps the column, where somebody else's line may be going on.
    return "\x1bD" * height + f"\x1b[{height}A"


def _confined(height: int, lines: int) -> str:
    """Return what keeps the terminal's text, and its cursor, from so many lines at the bottom."""
    # Up and down again leads a cursor out of these lines, for it stops where the scrolling region ends; elsewhere it is
    # where it was, but for one in the uppermost lines, which comes to stand a little lower.
    return SAVE + f"\x1b[1;{lines - height}r" + RESTORE + f"\x1b[{height}A\x1b[{height}B"
