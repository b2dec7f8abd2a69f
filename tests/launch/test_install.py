"""What launch/install.sh refuses, in a folder of its own. CI and `make test` are the test of the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "install.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "launch").mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    return tmp_path


def refusal(checkout: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "launch/install.sh"],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    return done.stderr


def test_an_unknown_variant_is_named(checkout):
    message = refusal(checkout, EGOGRPO_VARIANT="tpu")
    assert message == "install: error: EGOGRPO_VARIANT is 'tpu', not cpu or gpu\n"


def test_a_missing_python_is_named_and_an_existing_environment_kept(checkout):
    (checkout / ".venv").mkdir()
    message = refusal(checkout, EGOGRPO_VARIANT="cpu", PYTHON="python3.999")
    assert message.startswith(
        "install: error: no Python >= 3.11 with venv and pip found (tried: python3.999)"
    )
    assert (checkout / ".venv").is_dir()


def test_a_python_that_is_too_old_is_refused(checkout):
    # Says no, as the check of the version does in an old one.
    old = checkout / "old_python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert "no Python >= 3.11" in refusal(checkout, EGOGRPO_VARIANT="cpu", PYTHON=str(old))
