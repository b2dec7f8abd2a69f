"""What a terminal shows of a run, looked at in a real pseudo-terminal through a terminal emulator."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from grpo.run import terminal
from grpo.run.standing import Figure, Standing
from grpo.run.terminal import BottomDisplay, LineDisplay, curve, display_for
from grpo.run.trend_rules import Trend
from tests.support import tiny

COLUMNS, LINES = 100, 30


class Terminal:
    """A terminal of its own, and what a person would see in it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.resize(LINES, COLUMNS)

    def resize(self, lines: int, columns: int) -> None:
        termios.tcsetwinsize(self.slave, (lines, columns))
        self.screen.resize(lines, columns)

    def prints(self, text: str) -> None:
        """As any process prints that has the terminal."""
        os.write(self.slave, text.encode())

    def read(self) -> bool:
        """Take in what was printed; return whether there was something."""
        has_some = bool(select.select([self.master], [], [], 0.0)[0])
        if has_some:
            self.stream.feed(os.read(self.master, 1 << 16))
        return has_some

    def seen(self) -> list[str]:
        """The lines from the first one that has scrolled off to the bottom of the screen."""
        while self.read():
            pass
        above = ["".join(line[column].data for column in range(COLUMNS)) for line in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display]]


@pytest.fixture
def shown() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    for end in (found.master, found.slave):
        os.close(end)


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn but when a test asks for it."""
    monkeypatch.setattr(terminal, "REFRESH_S", 600.0)


def standing(step: int = 3, num_warnings: int = 0) -> Standing:
    return Standing(
        step=step,
        num_steps=10,
        figures=(Figure(label="reward", steps=(1, step), values=(0.5, 0.75)),),
        held_out=(Figure(label="set accuracy", steps=(2,), values=(0.5,)),),
        warnings=tuple(Trend(name=str(each), text=f"wrong {each}") for each in range(num_warnings)),
        step_s=30.0,
        left_s=210.0,
        process_hours=1.25,
    )


def display(shown: Terminal) -> BottomDisplay:
    return BottomDisplay("runs/x", hours_of="GPU hours", fd=shown.slave)


def test_the_view_stands_at_the_bottom_with_what_matters(shown: Terminal):
    display(shown).show(standing(num_warnings=1))
    title, head, figures, held_out, warning = shown.seen()[-5:]
    assert title.strip("─ ") == "runs/x: step 4 for 0 s"
    assert head.startswith("step 3 of 10  ━") and "30 s a step  4 min left  1.25 GPU hours" in head
    assert figures == "reward 0.75 ▁█" and held_out == "held-out set accuracy 0.5 at 2"
    assert warning == "warning: wrong 0"


def test_whatever_others_print_scrolls_above_and_stays_whole(shown: Terminal):
    """Some of it before the view, a line that goes on while the view is drawn, and more than the terminal holds."""
    others = [f"line {number} of another process" for number in range(100)]
    for line in others[:50]:
        shown.prints(line + "\n")
    view = display(shown)
    for number, line in enumerate(others[50:]):
        shown.prints(line[:6])
        # The third view is higher than those before.
        view.show(standing(step=number % 9, num_warnings=2 if number > 2 else 0))
        shown.prints(line[6:] + "\n")
        shown.read()
    seen = shown.seen()
    assert [line for line in seen if "of another process" in line] == others
    assert [line for line in seen if "runs/x" in line] == [seen[-6]]
    view.close()
    shown.prints("done\n")
    *above, title, head, _, _, _, _, done = [line for line in shown.seen() if line]
    assert [line for line in above if line] == others and "runs/x" in title and done == "done"
    assert "step 4 of 10" in head and "for" not in title


def test_a_closed_view_lets_the_whole_terminal_scroll(shown: Terminal):
    view = display(shown)
    view.show(standing())
    view.close()
    view.close()
    shown.prints("\n" * 50 + "last\n")
    assert shown.seen()[-2:] == ["last", ""]
    assert shown.screen.margins is None


@pytest.mark.parametrize(("lines", "columns"), [(20, 80), (44, 120)])
def test_a_terminal_of_another_size_has_one_view_at_its_bottom(shown: Terminal, lines: int, columns: int):
    view = display(shown)
    shown.prints("before\n")
    view.show(standing())
    shown.read()
    shown.resize(lines, columns)
    view.show(standing())
    shown.prints("after\n")
    seen = [line.rstrip() for line in (shown.seen(), shown.screen.display)[1]]
    assert [number for number, line in enumerate(seen) if "runs/x" in line] == [lines - 4]
    assert "before" in shown.seen() and "after" in seen
    assert len(seen[-4]) == columns - 1


@pytest.mark.parametrize("reset", ["\x1b[r", "\x1b7\x1b[r\x1b8", "\x1bc"])
def test_a_terminal_that_another_process_resets_gets_its_view_back(shown: Terminal, reset: str):
    """The first sequence also moves the cursor into a corner, and the last one clears the screen.

    Lines are lost only where they stand when the view is drawn again for the first time.
    """
    others = [f"line {number} of another process" for number in range(120)]
    view = display(shown)
    view.show(standing())
    shown.prints("\n" * LINES + reset)
    for number, line in enumerate(others):
        shown.prints(line + "\n")
        if number % 40 == 39:
            view.show(standing())
            shown.read()
    seen = shown.seen()
    lost = [line for line in others if not any(each.startswith(line) for each in seen)]
    assert len(lost) <= view.height and {*lost} <= {*others[:40]}
    assert "runs/x" in seen[-4]
    shown.prints("last\n" * LINES)
    assert shown.seen()[-4:] == seen[-4:]


def test_frames_between_which_nothing_is_printed_move_nothing(shown: Terminal):
    shown.prints("".join(f"{number}\n" for number in range(LINES)))
    view = display(shown)
    view.show(standing())
    seen = shown.seen()
    for _ in range(5):
        view.show(standing())
    assert shown.seen() == seen


def test_the_last_view_is_whole_where_the_terminal_had_no_room_for_it(shown: Terminal):
    shown.resize(terminal.MIN_LINES, COLUMNS)
    view = display(shown)
    view.show(standing(num_warnings=4))
    assert not any("wrong 3" in line for line in shown.seen())
    view.close()
    last = [line for line in shown.seen() if line][-8:]
    assert "runs/x" in last[0] and last[1].startswith("step 3 of 10") and last[-1] == "warning: wrong 3"


def test_a_terminal_that_is_gone_stops_nothing(shown: Terminal):
    gone = os.open(os.devnull, os.O_RDONLY)
    view = BottomDisplay("runs/x", hours_of="GPU hours", fd=gone)
    view.show(standing())
    view.close()
    os.close(gone)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_these_characters_gets_none(shown: Terminal, encoding: str):
    long = "runs/" + "x" * COLUMNS
    view = BottomDisplay(long, hours_of="GPU hours", fd=shown.slave, encoding=encoding)
    view.show(standing())
    title, head, figures, _ = shown.seen()[-4:]
    assert title == f"- {long[: COLUMNS - 6]}. -"
    assert head.startswith("step 3 of 10  ----") and figures == "reward 0.75"
    view.close()
    BottomDisplay("runs/x", hours_of="GPU hours", fd=shown.slave, encoding=encoding).show(standing())
    assert shown.seen()[-4].startswith("-----") and "?" not in "".join(shown.seen())


def test_a_process_that_ends_at_once_gives_the_terminal_back(shown: Terminal):
    code = "from grpo.run.terminal import release_terminal; release_terminal()"
    shown.prints("before\n")
    display(shown).show(standing())
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-c", code], stdout=shown.slave, cwd=tiny.ROOT, env=environment, check=True
    )
    shown.prints("after\n")
    assert [line for line in shown.seen() if line] == ["before", "after"]
    assert shown.screen.margins is None


@pytest.mark.parametrize(
    ("environment", "is_live", "expected"),
    [
        ({"TERM": "xterm"}, True, BottomDisplay),
        ({"TERM": "xterm"}, False, LineDisplay),
        ({"TERM": "xterm", "CI": "true"}, True, LineDisplay),
        ({"TERM": "dumb"}, True, LineDisplay),
        ({}, True, LineDisplay),
    ],
)
def test_the_view_is_for_terminals_and_can_be_turned_off(
    shown: Terminal,
    environment: dict[str, str],
    is_live: bool,
    expected: type,
    monkeypatch: pytest.MonkeyPatch,
):
    with open(shown.slave, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        found = display_for("x", hours_of="hours", is_live=is_live, environment=environment)
        assert type(found) is expected
        termios.tcsetwinsize(shown.slave, (0, 0))  # as in containers and under some launchers
        assert (
            type(display_for("x", hours_of="h", is_live=True, environment={"TERM": "xterm"})) is LineDisplay
        )


def test_elsewhere_a_step_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = display_for("x", hours_of="hours", is_live=True, environment={"TERM": "xterm"})
    found.show(standing())
    found.close()
    assert capsys.readouterr().out == "step 3/10: reward=0.75, 30 s a step, 4 min left\n"


def test_a_curve_has_the_means_of_as_many_values_each():
    # 0.5, 2.5 and 4.5 of 0 to 4: the lowest, the middle one of eight, and the highest.
    assert curve((0.0, 1.0, 2.0, 3.0, 4.0, 5.0), columns=3) == "▁▅█"
    assert curve((0.3,) * 4 + (0.1 + 0.2,)) == "▁▁▁▁▁"
    assert curve((-1.0, -2.0)) == "█▁"
