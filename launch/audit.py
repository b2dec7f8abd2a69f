"""Asks PyPI's advisories about every package that is installed beside this Python: `make audit`.

Ends with 0 if all were asked about and none has an advisory, 1 if one has, and 2 if some could not be asked about:
without a network, or with a mirror that has no advisories, nothing is known, which is not the same as nothing found.
These are the statuses of `python launch/audit.py`; `make` itself ends with 2 whatever a command of its fails with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

OWN = "egogrpo"
FOLDER = Path(__file__).parents[1] / ".venv-audit"
"""An environment of its own: pip-audit would change the versions of what it is to ask about."""
PIP_AUDIT = "pip-audit>=2.10,<3"


def pinned() -> list[str]:
    """Return all installed packages but this one, as exact requirements: `2.13.0+cpu` has its advisories as 2.13.0."""
    found = {each.name.lower(): each.version.partition("+")[0] for each in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name != OWN]


def installed_tool() -> list[str]:
    """Return the command of pip-audit, which is installed on first use; CalledProcessError if it can't be."""
    tool = FOLDER / "bin" / "pip-audit"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(FOLDER / "bin" / "pip"), "install", "--quiet", PIP_AUDIT], check=True)
    return [str(tool)]


def audit(tool: Sequence[str], packages: Iterable[str]) -> list[dict[str, Any]] | None:
    """Return what is known of each package; None if pip-audit ended without saying it."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder) / "requirements.txt", Path(folder) / "report.json"
        requirements.write_text("\n".join(packages) + "\n", encoding="utf-8")
        options = [
            "--no-deps",
            "--disable-pip",
            "--progress-spinner=off",
            "--format=json",
            f"--output={report}",
        ]
        subprocess.run([*tool, f"--requirement={requirements}", *options], check=False)
        try:
            return json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        except (OSError, ValueError, KeyError):
            return None


def report(asked: int, known: Sequence[dict[str, Any]]) -> int:
    """Print what was found, and return the exit status."""
    checked = [each for each in known if "vulns" in each]
    bad = [each for each in checked if each["vulns"]]
    for each in bad:
        for found in each["vulns"]:
            fixed = ", ".join(found.get("fix_versions", [])) or "none yet"
            print(f"{each['name']} {each['version']}: {found['id']}; fixed in: {fixed}")
    print(f"audit: {len(checked)} of {asked} packages were asked about, {len(bad)} have an advisory")
    if missing := asked - len(checked):
        reasons = {each["skip_reason"].partition(":")[0] for each in known if "skip_reason" in each}
        print(f"audit: NOT CHECKED: {missing} packages ({'; '.join(sorted(reasons)) or 'no answer'})")
    return 1 if bad else 2 if missing else 0


def main() -> int:
    packages = pinned()
    try:
        known = audit(installed_tool(), packages)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"audit: NOT CHECKED: {PIP_AUDIT} can't be installed ({error}); is there a network?")
        return 2
    if known is None:
        print("audit: NOT CHECKED: pip-audit gave no answer (above it says why); is there a network?")
        return 2
    return report(len(packages), known)


if __name__ == "__main__":
    sys.exit(main())
