"""Where the golden trace is stored, and how: JSON of one list or number a line, so that a diff can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "files"
NUM_DIGITS = 7
"""Significant digits of a stored float: about all that fp32 has."""


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str, value: Any) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text("".join(_lines(rounded(value), "")) + "\n")


def rounded(value: Any) -> Any:
    """The value as it is stored."""
    if isinstance(value, dict):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.{NUM_DIGITS}g}") if isinstance(value, float) else value


def write_updates(updates: dict[str, Any]) -> None:
    """As `write`, with the names of the weights once, and not in each of the many cases."""
    names = sorted(next(iter(updates.values()))["weights"])
    cases = {
        case: {**values, "weights": [values["weights"][name] for name in names]}
        for case, values in updates.items()
    }
    write("updates", {"weights": names, "cases": cases})


def read_updates() -> dict[str, Any]:
    """What `write_updates` was given."""
    stored = read("updates")
    return {
        case: {**values, "weights": dict(zip(stored["weights"], values["weights"], strict=True))}
        for case, values in stored["cases"].items()
    }


def _lines(value: Any, indent: str) -> Iterator[str]:
    """Sorted keys, each on a line of its own, and so is each dictionary of a list; other lists are compact."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        yield "{"
        for index, key in enumerate(sorted(value)):
            yield f"{',' if index else ''}\n{inner}{json.dumps(key)}: "
            yield from _lines(value[key], inner)
        yield f"\n{indent}}}"
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        yield "["
        for index, each in enumerate(value):
            yield f"{',' if index else ''}\n{inner}"
            yield from _lines(each, inner)
        yield f"\n{indent}]"
    else:
        yield json.dumps(value, separators=(",", ":"), ensure_ascii=False)
