"""A start that takes long shows what it is doing, and a quick one does not."""

from __future__ import annotations

import io
import time

import pytest

from grpo.run import progress
from grpo.run.progress import say, say_anything, under_way


def test_what_takes_long_is_shown_with_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_S", (0.0, 5.0))
    shown, give_up_at = "", time.monotonic() + 60
    with under_way("loading weights"):
        while "loading weights: 00:" not in shown and time.monotonic() < give_up_at:
            time.sleep(0.01)
            shown += capsys.readouterr().err
        say("half of them")
    assert "loading weights: 00:" in shown
    assert capsys.readouterr().out == "half of them\n"


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    say_anything()
    say("é")
    assert printed.getvalue() == b"\\xe9\n"


@pytest.mark.parametrize("is_shown", [True, False])
def test_what_is_over_at_once_or_another_processs_is_not_shown(
    is_shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_S", (600.0 if is_shown else 0.0, 5.0))
    with pytest.raises(KeyError), under_way("loading weights", is_shown=is_shown):
        raise KeyError
    assert capsys.readouterr().err == ""
