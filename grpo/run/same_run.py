"""Whether a run's folder holds the run that a config describes: only settings that are free to change may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo.config.limits import FREE, single_settings
from grpo.config.load import read_config
from grpo.config.schema import Config


def check_same_run(old: Path, config: Config) -> None:
    """Raise ValueError if a run folder's config file differs in a key that would make it another run."""
    try:
        before, now = _fixed(read_config(old)), _fixed(config)
    except ValueError as error:
        raise ValueError(
            f"run_dir: {old}: {error}; it says what run the folder holds: put it back, or choose another run_dir"
        ) from error
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"run_dir: {old.parent} holds a run with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another run_dir, or remove that folder"
            )


def _fixed(config: Config) -> dict[str, Any]:
    """Values that a resumed run may not change, by their dotted keys."""
    return {key: value for key, value, words in single_settings(config) if FREE not in words}
