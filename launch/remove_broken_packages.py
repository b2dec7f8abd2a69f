"""Makes pip forget the packages of this environment whose files are not all there.

An installation that was interrupted leaves packages that pip takes for installed: it looks at their metadata
only. Without it, pip installs them again, over what is there.

    .venv/bin/python launch/remove_broken_packages.py
"""

from __future__ import annotations

import csv
import shutil
import sysconfig
from pathlib import Path


def is_complete(metadata_dir: Path) -> bool:
    """Whether every file that the package's RECORD lists is there, with the size that it gives."""
    record = metadata_dir / "RECORD"
    if not record.is_file() or not (metadata_dir / "METADATA").is_file():
        return False
    with record.open(encoding="utf-8", newline="") as lines:
        for name, _hash, size_bytes in csv.reader(lines):
            path = metadata_dir.parent / name
            # Byte code is written anew, and RECORD itself is listed without a size.
            if not size_bytes or name.endswith(".pyc"):
                continue
            if not path.is_file() or path.stat().st_size != int(size_bytes):
                return False
    return True


def remove_broken_packages(site_packages: Path) -> list[str]:
    """Remove the metadata of incomplete packages and what a broken-off upgrade left; their names."""
    broken = [path for path in site_packages.glob("*.dist-info") if not is_complete(path)]
    # While pip replaces a package, its old files are under a name that starts with a tilde.
    leftovers = list(site_packages.glob("~*"))
    for path in broken + leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return sorted(path.name for path in broken)


if __name__ == "__main__":
    for name in remove_broken_packages(Path(sysconfig.get_path("purelib"))):
        print(f"install: {name.removesuffix('.dist-info')} was not installed completely")
