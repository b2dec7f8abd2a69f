"""What differs between two runs, in words: settings, versions, code, hardware, data, seeds, and the first figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml

from grpo.run.folder import RunDir, check_is_run

NOT_COMPARED = ("time/", "media/")
"""The figures that no two runs share: times, and what was in caches already."""
RUN_DIR = "run_dir"
FAR_FRAC = 0.01
"""The share of a figure from which on it differs by more than rounding makes of a run that is otherwise the same."""
MAX_FIGURES = 5
MAX_CHARACTERS = 100
SECTIONS = {
    "git": "code",
    "packages": "packages",
    "hardware": "hardware",
    "data": "data",
    "model": "the model it starts from",
    "rewards": "files of rewards",
    "media": "media settings",
    "seeds": "seeds",
}
"""The parts of a manifest that have a heading of their own, with it; what else is in it is compared last."""
NAMED_BY_CONTENT = ("packages", "data", "rewards")
"""The parts in which a name that one run lacks is something that it has not; in others that run did not record it."""
WHOLE = "all of it"
OTHERS = "Python and processes"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that two runs have otherwise; None where a run has none of that name."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.a)} | {_short(self.b)}"


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Return what differs between two runs, as plain data for `as_text` and JSON. ValueError for what is no run."""
    for folder in (a, b):
        check_is_run(folder)
    settings = [_settings(RunDir(each).config_file) for each in (a, b)]
    manifests = [_manifest(RunDir(each).manifest_file) for each in (a, b)]
    found, lacking = {"settings": _differences(*settings)}, {}
    for name, title in SECTIONS.items():
        parts = [manifest.get(name) for manifest in manifests]
        found[title], lacking[title] = _section(name, *parts)
    others = [{k: v for k, v in manifest.items() if k not in SECTIONS} for manifest in manifests]
    found[OTHERS], lacking[OTHERS] = _section("", *others)
    return {
        "runs": [str(a), str(b)],
        "differences": {
            title: [{"name": each.name, "a": each.a, "b": each.b} for each in several]
            for title, several in found.items()
        },
        "not_recorded": {title: names for title, names in lacking.items() if names},
        "code": _code(*[manifest.get("git") for manifest in manifests]),
        "metrics": _metrics(*[RunDir(each).metrics() for each in (a, b)]),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Return a comparison as lines to read."""
    a, b = found["runs"]
    lines = [f"A = {a}", f"B = {b}"]
    for title, several in found["differences"].items():
        lacking = {k: f"not recorded in {v}" for k, v in found["not_recorded"].get(title, {}).items()}
        same = lacking.pop(WHOLE, "the same")
        lines.append(f"{title}: " + (f"{len(several)} differ (A | B)" if several else same))
        lines += [f"  {Difference(**each)}" for each in several]
        lines += [f"  {name}: {which}" for name, which in lacking.items()]
    lines += [f"  {line}" for line in found["code"]]
    return "\n".join([*lines, *_metric_lines(found["metrics"])])


def differs(found: Mapping[str, Any]) -> bool:
    """Return whether the runs differ in anything but the name of their folder; what one did not record is no matter."""
    metrics = found["metrics"]
    first, last = metrics["last_steps"]
    return any(found["differences"].values()) or metrics["first_step"] is not None or first != last


def _settings(file: Path) -> dict[str, Any]:
    """Return a run's settings as its file has them, which another version of this program may have written."""
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    return {name: value for name, value in _flat(read or {}).items() if name != RUN_DIR}


def _manifest(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{file}: no manifest of a run")
    return read


def _section(name: str, a: Any, b: Any) -> tuple[list[Difference], dict[str, str]]:
    """Return what differs in a part of the manifests, and by name which of them did not record what."""
    by_content = name in NAMED_BY_CONTENT
    lacks = [label for label, part in (("A", a), ("B", b)) if part is None or (part == {} and not by_content)]
    if lacks:
        return [], {WHOLE: " and ".join(lacks)}
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return _differences({name: a}, {name: b}), {}
    lacking = (
        {} if by_content else {field: "A" if field in b else "B" for field in sorted(a.keys() ^ b.keys())}
    )
    # A difference to the commit is told apart by its digest alone.
    parts = [{k: v for k, v in part.items() if k not in lacking and k != "diff"} for part in (a, b)]
    return _differences(*map(_flat, parts)), lacking


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return [Difference(name=name, a=a.get(name), b=b.get(name)) for name in names]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the single values in mappings by their dotted names; a list is a value, for its places have no names."""
    if not isinstance(value, Mapping):
        return {name: value}
    inner = [_flat(each, f"{name}.{key}" if name else str(key)) for key, each in value.items()]
    return {key: each for part in inner for key, each in part.items()}


def _code(a: Any, b: Any) -> list[str]:
    """Return how the runs' differences to their commits differ, as a diff of these."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)) or "diff" not in a or "diff" not in b:
        return []
    if a.get("commit") != b.get("commit") or a.get("diff") == b.get("diff"):
        return []
    ours, theirs = (str(each.get("diff", "")).splitlines() for each in (a, b))
    return [*unified_diff(ours, theirs, "changes of A", "changes of B", lineterm="", n=1)]


def _metrics(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return from which step on figures differ, at all and by more than rounding, and the steps that one run lacks."""
    rows_a, rows_b = ({int(row["step"]): row for row in rows} for rows in (a, b))
    shared = sorted(rows_a.keys() & rows_b.keys())
    first = next((step for step in shared if _other(rows_a[step], rows_b[step])), None)
    far = next((step for step in shared if _other(rows_a[step], rows_b[step], FAR_FRAC)), None)
    return {
        "num_shared": len(shared),
        "first_step": first,
        "first": _other(rows_a[first], rows_b[first]) if first is not None else [],
        "far_step": far,
        "far": _other(rows_a[far], rows_b[far], FAR_FRAC) if far is not None else [],
        "last_steps": [max(rows, default=None) for rows in (rows_a, rows_b)],
    }


def _other(a: Mapping[str, Any], b: Mapping[str, Any], frac: float = 0.0) -> list[dict[str, Any]]:
    """Return the figures of a step that differ by more than a share of the larger one."""
    names = sorted(name for name in a.keys() | b.keys() if not name.startswith(NOT_COMPARED))
    found = [Difference(name=name, a=a.get(name), b=b.get(name)) for name in names]
    return [
        {"name": each.name, "a": each.a, "b": each.b} for each in found if _is_apart(each.a, each.b, frac)
    ]


def _is_apart(a: Any, b: Any, frac: float) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float) and math.isfinite(a) and math.isfinite(b):
        return abs(a - b) > frac * max(abs(a), abs(b))
    # NaN is not equal to itself.
    return a != b and not (a != a and b != b)


def _metric_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    ends = metrics["last_steps"]
    if not metrics["num_shared"]:
        yield "metrics: no step that both have"
    elif metrics["first_step"] is None:
        yield f"metrics: the same to the last digit in all {metrics['num_shared']} steps that both have, but for times"
    else:
        yield f"metrics: the first that differ are of step {metrics['first_step']} (A | B)"
        yield from _figure_lines(metrics["first"])
        if metrics["far_step"] is None:
            yield f"  none by more than {FAR_FRAC:.0%}: as rounding makes it"
        elif metrics["far_step"] != metrics["first_step"]:
            yield f"metrics: by more than {FAR_FRAC:.0%} from step {metrics['far_step']} on (A | B)"
            yield from _figure_lines(metrics["far"])
    if ends[0] != ends[1]:
        a, b = ("has none" if end is None else f"ends with step {end}" for end in ends)
        yield f"metrics: A {a}, B {b}"


def _figure_lines(several: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"  {Difference(**each)}" for each in several[:MAX_FIGURES])
    if len(several) > MAX_FIGURES:
        yield f"  and {len(several) - MAX_FIGURES} more figures of that step"


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
