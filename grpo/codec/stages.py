"""The stages of a recipe: commands that are run one after another, each once for the settings that it has.

What is made of codes takes many commands, from data to a table: `grpo/motion/recipe.py` and `grpo/actions/recipe.py`
list theirs.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A command with a name of its own among a recipe's."""

    name: str
    command: Sequence[str]


def run(out: Path, stages: Iterable[Stage]) -> None:
    """Run all stages that are not done; CalledProcessError for one that fails, whose log in OUT/logs says why.

    ValueError, before anything is run, for a stage that was done with other settings, or after stages with others.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    todo = [*stages]
    settings = [*accumulate(map(_settings, todo))]
    files = [out / "logs" / stage.name.replace(" ", "_") for stage in todo]
    for file, given in zip(files, settings, strict=True):
        _check_done(file.with_suffix(".done"), given)
    for stage, file, given in zip(todo, files, settings, strict=True):
        done = file.with_suffix(".done")
        if done.exists():
            continue
        print(f"{stage.name} ...", flush=True)
        started_s = time.monotonic()
        with file.with_suffix(".log").open("w", encoding="utf-8") as log:
            log.write(" ".join(stage.command) + "\n")
            log.flush()
            subprocess.run(stage.command, stdout=log, stderr=subprocess.STDOUT, check=True)
        seconds = round(time.monotonic() - started_s)
        done.write_text(json.dumps({"seconds": seconds, "settings": given}) + "\n", encoding="utf-8")
        print(f"{stage.name}: {seconds} s", flush=True)


def _settings(stage: Stage) -> list[str]:
    """A stage's arguments, those that are files of settings with what the files hold."""
    return [
        f"{word} {hashlib.sha256(Path(word).read_bytes()).hexdigest()}" if word.endswith(".yaml") else word
        for word in stage.command[1:]
    ]


def _check_done(done: Path, settings: Sequence[str]) -> None:
    """Raise ValueError if a stage is done with other settings; those of the stages before it are among them."""
    if not done.exists():
        return
    known = json.loads(done.read_text(encoding="utf-8"))["settings"]
    for own, given in zip_longest(known, settings, fillvalue="nothing"):
        if own != given:
            raise ValueError(
                f"{done.parents[1]} was made with other settings: {done} is of {own!r}, and now it is {given!r}: "
                "choose another folder"
            )
