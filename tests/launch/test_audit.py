"""`make audit`: an advisory fails it, and what could not be asked about is never taken for safe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import audit

VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SAFE = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}


@pytest.mark.parametrize(
    ("known", "status", "said"),
    [
        ([SAFE, SAFE], 0, "2 of 2 packages were asked about, 0 have an advisory"),
        ([SAFE, VULNERABLE], 1, "b 2: PYSEC-1; fixed in: 2.1"),
        (
            [SKIPPED, SKIPPED],
            2,
            "NOT CHECKED: 2 packages (Dependency not found on PyPI and could not be audited)",
        ),
        ([SAFE], 2, "NOT CHECKED: 1 packages (no answer)"),
        ([VULNERABLE, SKIPPED], 1, "NOT CHECKED: 1 packages"),
        (None, 2, "NOT CHECKED: pip-audit gave no answer"),
    ],
)
def test_what_is_found_and_what_is_not_known_are_told_apart(
    known: list[dict[str, Any]] | None,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = tmp_path / "tool.py"
    answer = (
        f"open(out, 'w').write({json.dumps({'dependencies': known})!r})"
        if known is not None
        else "sys.exit(1)"
    )
    tool.write_text(f"import sys\nout = sys.argv[-1].partition('=')[2]\n{answer}\n")
    monkeypatch.setattr(audit, "installed_tool", lambda: [sys.executable, str(tool)])
    monkeypatch.setattr(audit, "pinned", lambda: ["a==1", "b==2"])
    assert audit.main() == status
    assert said in capsys.readouterr().out


def test_without_a_network_nothing_is_said_to_be_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(audit, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(subprocess, "run", fails)
    assert audit.main() == 2
    assert "NOT CHECKED" in capsys.readouterr().out


def test_the_packages_are_those_that_are_installed_without_parts_of_versions_that_are_local() -> None:
    packages = dict(each.split("==") for each in audit.pinned())
    assert "numpy" in packages and "egogrpo" not in packages
    assert not [version for version in packages.values() if "+" in version]
