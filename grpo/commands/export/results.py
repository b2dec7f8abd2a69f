"""The results of evaluations, as `egogrpo evaluate` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_results(file: Path, key: str = "results") -> dict[str, Any]:
    """Return a results.json; raise ValueError, or FileNotFoundError, that names the file if it is none.

    key: what named the file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{key}: no file {file}") from None
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= {"benchmark", "models"}:
        raise ValueError(f"{file}: no results.json of egogrpo evaluate")
    return found
