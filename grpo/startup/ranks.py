"""The process's place among those of the run, as the launcher tells it in environment variables."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ADVICE = "unset them if another launcher has left them, or start with accelerate launch"


def launched_rank(environment: Mapping[str, str]) -> int:
    """Return the process's rank; raise ValueError if the variables can't be those of one launcher.

    What another launcher has left would make this a second first process, or give it the wrong share of the data.
    """
    given = {name: environment[name] for name in NAMES if name in environment}
    shown = " ".join(f"{name}={value}" for name, value in given.items())
    if "LOCAL_RANK" not in given and given.get("RANK", "0") == "0" and given.get("WORLD_SIZE", "1") == "1":
        return 0
    if missing := [name for name in NAMES if not given.get(name)]:
        raise ValueError(f"environment: {shown} without {', '.join(missing)}: {ADVICE}")
    numbers = [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")]
    if not all(number.isdecimal() for number in numbers) or not int(numbers[0]) < int(numbers[1]):
        raise ValueError(f"environment: {shown} is no place among processes: {ADVICE}")
    return int(given["RANK"])
