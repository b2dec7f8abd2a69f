"""What launch/install.sh refuses, chooses and leaves alone, in a folder of its own and with a stand-in for Python.

CI and `make test` are the test of what it installs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm", "sh", "tail")
STAND_IN = """#!/bin/sh
# Python as far as the installer knows it: notes what it is asked for, and makes what `-m venv` makes.
echo "$*" >>"$ASKED"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "$3" >"$3/bin/activate" ;;
    *python_version*) echo 3.12.0 ;;
    *purelib*) echo "$PWD" ;;
    *"cuda is not None"*) exit "$HAS_CUDA" ;;
    *"pip install"*"$UNKNOWN"*) echo "ERROR: No matching distribution found"; exit 1 ;;
esac
"""
LISTED = "GPU 0: NVIDIA H100 (UUID: GPU-1)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "launch").mkdir()
    for name in ("install.sh", "remove_broken_packages.py", "torchvision_cpu_ops.py"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
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


def program(path: Path, code: str) -> None:
    path.write_text(code)
    path.chmod(0o755)


def install(
    checkout: Path, *, unknown: str = "nothing", has_cuda: int = 0
) -> subprocess.CompletedProcess[str]:
    """With no other programs in reach than the installer's tools and what a test has put into bin."""
    bin_folder = checkout / "bin"
    bin_folder.mkdir(exist_ok=True)
    for tool in TOOLS:
        if not (bin_folder / tool).exists():
            (bin_folder / tool).symlink_to(shutil.which(tool) or tool)
    program(bin_folder / "python3", STAND_IN)
    (checkout / "asked").write_text("")
    return subprocess.run(
        ["bash", "launch/install.sh"],
        cwd=checkout,
        env={"PATH": str(bin_folder), "ASKED": str(checkout / "asked"), "UNKNOWN": unknown, "HAS_CUDA": str(has_cuda)},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip


def asked(checkout: Path, words: str) -> list[str]:
    return [line for line in (checkout / "asked").read_text().splitlines() if words in line]


@pytest.mark.parametrize(
    ("driver", "variant"),
    [(None, "cpu"), ("exit 9", "cpu"), ("echo 'No devices were found'", "cpu"), (f"echo '{LISTED}'", "gpu")],
)
def test_what_is_installed_is_for_the_gpu_that_the_driver_lists(
    driver: str | None, variant: str, checkout: Path
) -> None:
    if driver is not None:
        (checkout / "bin").mkdir()
        program(checkout / "bin" / "nvidia-smi", f"#!/bin/sh\n{driver}\n")
    done = install(checkout, has_cuda=int(variant == "gpu"))
    assert done.returncode == 0 and f"done: .venv is ready ({variant})" in done.stdout, done.stderr
    (torch, project) = asked(checkout, "pip install")
    assert torch.endswith(" torch==2.13.0") and project.endswith(f" --editable .[{variant},dev]")
    # The mend of a CPU build's torchvision, which a CUDA build must not get
    assert (checkout / "torchvision_cpu_ops.pth").exists() == (variant == "cpu")


def test_a_second_call_is_silent_until_what_it_installs_from_changes(checkout: Path) -> None:
    install(checkout)
    again = install(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert asked(checkout, "-m pip") == asked(checkout, "-m venv") == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another line\n")
    assert "done" in install(checkout).stdout
    assert len(asked(checkout, "pip install")) == 2 and not asked(checkout, "-m venv")


def test_an_installation_that_failed_is_carried_on(checkout: Path) -> None:
    assert install(checkout, unknown="editable").returncode != 0
    assert "done" in install(checkout).stdout
    assert not asked(checkout, "-m venv")


@pytest.mark.parametrize("unknown", ["torch==", "editable"])
def test_a_missing_cpu_build_of_torch_is_told_the_way_out(unknown: str, checkout: Path) -> None:
    done = install(checkout, unknown=unknown)
    assert done.returncode != 0 and "No matching distribution" in done.stderr
    assert "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, or PIP_FIND_LINKS" in done.stderr
    program(checkout / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{LISTED}'\n")
    assert "PIP_" not in install(checkout, unknown=unknown).stderr
