"""What came of a sweep: `results.md`, `.csv`, `.json` and `.png` in its folder, from the runs that are finished."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo.commands.sweeps.intervals import FOOTNOTE, ArmSummary, draw_arms, summarise, table
from grpo.commands.sweeps.plan import Run, Sweep, arm_overrides
from grpo.run.folder import read_rows, write_text
from rewards.scoring.loading import did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A metric of a finished run."""

    value: float
    step: int
    """Of the last row that it is taken from."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run's figures, by metric; one that the run does not have is not there."""

    run: Run
    values: Mapping[str, Value]
    """Finite ones only."""
    curves: Mapping[str, Mapping[int, float]]
    names: frozenset[str]
    """Of all that its rows have."""


def read_results(sweep: Sweep, runs: Sequence[Run]) -> list[Result]:
    return [read_result(run, sweep.metrics, last=sweep.last) for run in runs if run.is_finished()]


def read_result(run: Run, metrics: Sequence[str], *, last: int) -> Result:
    """The figures of a finished run; a value is the mean over the last rows that have the metric.

    There is none where these are not all finite: the rows before them would tell of a run that went well.
    """
    rows = read_rows(run.folder / "metrics.jsonl")
    curves = {
        metric: curve
        for metric in metrics
        if (curve := {row["step"]: row[metric] for row in rows if metric in row})
    }
    values = {
        metric: Value(value=fmean([*curve.values()][-last:]), step=max(curve))
        for metric, curve in curves.items()
        if all(map(math.isfinite, [*curve.values()][-last:]))
    }
    return Result(run=run, values=values, curves=curves, names=frozenset().union(*rows))


def check_results(sweep: Sweep) -> None:
    """Raise ValueError if the sweep's folder holds the results of another one; of fewer arms is the same one, grown."""
    file = Path(sweep.out) / "results.json"
    before = json.loads(file.read_text())["sweep"]["arms"] if file.exists() else {}
    now = json.loads(json.dumps(sweep.arms))
    for arm, changes in before.items():
        if arm not in now or now[arm] != changes:
            what = "with other changes" if arm in now else "that is not in this sweep"
            raise ValueError(f"out: {file} has an arm {arm!r} {what}; set out=..., or remove that file")


def write_results(sweep: Sweep, runs: Sequence[Run], failures: Mapping[str, str]) -> None:
    """Write the four files. failures: reasons by the label of the run."""
    out, results = Path(sweep.out), read_results(sweep, runs)
    out.mkdir(parents=True, exist_ok=True)
    summaries = {metric: summarise(values_of(sweep, results, metric)) for metric in sweep.metrics}
    states = {run.label: state_of(run, failures) for run in runs}
    write_text(out / "results.csv", as_csv(sweep, results))
    write_text(
        out / "results.json",
        json.dumps(as_json(sweep, results, summaries, states), indent=2, allow_nan=False) + "\n",
    )
    write_text(out / "results.md", as_markdown(sweep, results, summaries, states))
    curves = {metric: curves_of(sweep, results, metric) for metric in sweep.metrics}
    draw_arms(curves, out / "results.png")


def state_of(run: Run, failures: Mapping[str, str]) -> str:
    """In one line."""
    if run.is_finished():
        return "finished"
    return f"failed: {failures[run.label]}" if run.label in failures else "not finished"


def values_of(sweep: Sweep, results: Sequence[Result], metric: str) -> dict[str, dict[int, float]]:
    """By arm and seed, of the runs that have the metric."""
    return {
        arm: {
            each.run.seed: each.values[metric].value
            for each in results
            if each.run.arm == arm and metric in each.values
        }
        for arm in sweep.arms
    }


def curves_of(sweep: Sweep, results: Sequence[Result], metric: str) -> dict[str, list[Mapping[int, float]]]:
    """By arm, a curve per seed, of its finite points; arms without one are left out."""
    curves: dict[str, list[Mapping[int, float]]] = {
        arm: [
            {step: value for step, value in each.curves[metric].items() if math.isfinite(value)}
            for each in results
            if each.run.arm == arm and metric in each.curves
        ]
        for arm in sweep.arms
    }
    return {arm: runs for arm, runs in curves.items() if runs}


def as_csv(sweep: Sweep, results: Sequence[Result]) -> str:
    """A row per finished run and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sweep", "arm", "seed", "metric", "value", "step"])
    for each in results:
        for metric, found in each.values.items():
            writer.writerow([sweep.name, each.run.arm, each.run.seed, metric, found.value, found.step])
    return text.getvalue()


def as_json(
    sweep: Sweep,
    results: Sequence[Result],
    summaries: Mapping[str, Sequence[ArmSummary]],
    states: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "sweep": asdict(sweep),
        "runs": states,
        "metrics": {metric: [asdict(each) for each in column] for metric, column in summaries.items()},
        "values": {
            each.run.label: {metric: asdict(value) for metric, value in each.values.items()}
            for each in results
        },
    }


def as_markdown(
    sweep: Sweep,
    results: Sequence[Result],
    summaries: Mapping[str, Sequence[ArmSummary]],
    states: Mapping[str, str],
) -> str:
    """The table of every metric, what the arms are, what is missing, and how to read it."""
    blocks = [f"# {sweep.name}", _arms(sweep)]
    for metric, column in summaries.items():
        steps = sorted({each.values[metric].step for each in results if metric in each.values})
        blocks.append(f"## {metric}")
        known = {name for each in results for name in each.names}
        missing = f"No finished run has it{did_you_mean(metric, known)}."
        blocks.append(table(column, num_seeds=len(sweep.seeds)) if steps else missing)
        if lost := [
            each.run.label for each in results if metric in each.curves and metric not in each.values
        ]:
            blocks.append(f"Left out, because it is not finite at their end: {', '.join(lost)}.")
        if len(steps) > 1:
            blocks.append(
                f"The runs' last rows with it are of different steps: {', '.join(map(str, steps))}."
            )
    if unfinished := [f"- {label}: {state}" for label, state in states.items() if state != "finished"]:
        blocks.append("## Runs that are not in the tables\n\n" + "\n".join(unfinished))
    blocks += ["![Learning curves](results.png)", f"{_meaning(sweep)} {FOOTNOTE}"]
    return "\n\n".join(blocks) + "\n"


def _meaning(sweep: Sweep) -> str:
    if sweep.last == 1:
        return "A run's value is that of the last row that has the metric: for a held-out score the last evaluation."
    return f"A run's value is the mean over the last {sweep.last} rows that have the metric."


def _arms(sweep: Sweep) -> str:
    """What every arm changes, as a list."""
    lines = [f"{', '.join(sweep.config)} {' '.join(f'`{text}`' for text in sweep.overrides)}".strip()]
    for arm, changes in sweep.arms.items():
        lines.append(
            f"- {arm}: {', '.join(f'`{text}`' for text in arm_overrides(arm, changes)) or 'as it is'}"
        )
    return lines[0] + "\n\n" + "\n".join(lines[1:])
