"""A page's files in a folder that a browser opens from the disk or from a server: no network, no script from data.

Data lie in scripts that assign a string and nothing else, since a page that is opened from the disk may load scripts
and no other files. The page reads the string as JSON, and shows what is in it as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

from grpo.run.disk import write_text

PAGE = Path(__file__).parent / "page"
"""The folder of the page, its scripts and its style, as they are shipped."""


def write_page(folder: Path) -> Path:
    """Copy the page into a folder, which is made if need be; return the file to open."""
    for file in sorted(each for each in PAGE.rglob("*") if each.is_file()):
        target = folder / file.relative_to(PAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(file, target)
    return folder / "index.html"


def write_data(folder: Path, name: str, value: Any) -> None:
    """Write a value as `data/<name>.js`, whole or not at all; the page finds it under its name."""
    file = folder / "data" / f"{name}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, data_script(name, value))


def data_script(name: str, value: Any) -> str:
    """Return a script that assigns a value, as a string of JSON, to its name in the page's `reportData`."""
    return f"reportData[{in_script(name)}] = {in_script(json_of(value))};\n"


def in_script(text: str) -> str:
    """Return a text as a string of JavaScript in ASCII that no tag, comment or end of a line can leave."""
    quoted = json.dumps(text)
    for mark in "<>&":
        quoted = quoted.replace(mark, f"\\u{ord(mark):04x}")
    return quoted


def json_of(value: Any) -> str:
    """Return a value as JSON in one line of ASCII. NaN and infinity, which JSON does not have, raise ValueError."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def short(value: float | None, digits: int = 5) -> float | None:
    """Return a number with so many significant digits; None where it is none, infinite or not a number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def finite(value: Any) -> Any:
    """Return a value as read from JSON or Parquet with None in the place of infinities and what is no number."""
    if isinstance(value, Mapping):
        return {str(name): finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
