"""What came of a sweep: `results.md`, `.csv`, `.json` and `.png` in its folder, from the runs that are finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grpo.commands.sweeps.intervals import FOOTNOTE, ArmSummary, draw_arms, summarise, table
from grpo.commands.sweeps.plan import Run, Sweep, arm_overrides
from grpo.run.disk import write_text
from grpo.run.folder import read_rows
from rewards.scoring.loading import did_you_mean

Rows = Mapping[Run, Sequence[Mapping[str, float]]]
"""The rows of `metrics.jsonl` by finished run."""
RUN_AND_METRIC = ["arm", "seed", "metric"]


def rows_of(runs: Sequence[Run]) -> Rows:
    """The metrics of the runs that are finished."""
    return {run: read_rows(run.folder / "metrics.jsonl") for run in runs if run.is_finished()}


def points_of(rows: Rows, metrics: Sequence[str]) -> pd.DataFrame:
    """The curves of the metrics, a row for each arm, seed, metric and step."""
    points = [
        (run.arm, run.seed, metric, row["step"], row[metric])
        for run, own in rows.items()
        for row in own
        for metric in metrics
        if metric in row
    ]
    columns = pd.Index([*RUN_AND_METRIC, "step", "value"])
    return pd.DataFrame(points, columns=columns).astype({"value": float})


def values_of(points: pd.DataFrame, *, last: int) -> pd.DataFrame:
    """A metric's value in each run, the mean over its last points, with the step of the last one.

    It is NaN where these points are not all finite: the points before them would tell of a run that went well.
    """
    tails = points.groupby(RUN_AND_METRIC, sort=False).tail(last)
    tails = tails.assign(value=tails["value"].where(np.isfinite(tails["value"])))
    grouped = tails.groupby(RUN_AND_METRIC, sort=False)
    values = grouped.agg(value=("value", lambda points: points.mean(skipna=False)), step=("step", "max"))
    return values.reset_index()


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
    out, rows = Path(sweep.out), rows_of(runs)
    out.mkdir(parents=True, exist_ok=True)
    points = points_of(rows, sweep.metrics)
    values = values_of(points, last=sweep.last)
    finite = values.dropna()
    summaries = {metric: summarise(by_arm(finite, metric, sweep.arms)) for metric in sweep.metrics}
    states = {run.label: state_of(run, failures) for run in runs}
    report = {
        "sweep": asdict(sweep),
        "runs": states,
        "metrics": {metric: [asdict(each) for each in column] for metric, column in summaries.items()},
        "values": {run.label: by_metric(finite, run) for run in rows},
    }
    columns = ["sweep", *RUN_AND_METRIC, "value", "step"]
    write_text(out / "results.csv", finite.assign(sweep=sweep.name)[columns].to_csv(index=False))
    write_text(out / "results.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    known = {name for own in rows.values() for row in own for name in row}
    write_text(out / "results.md", as_markdown(sweep, values, summaries, states, known))
    draw_arms(points[np.isfinite(points["value"])], sweep.metrics, list(sweep.arms), out / "results.png")


def state_of(run: Run, failures: Mapping[str, str]) -> str:
    """What became of a run, in one line."""
    if run.is_finished():
        return "finished"
    return f"failed: {failures[run.label]}" if run.label in failures else "not finished"


def by_arm(values: pd.DataFrame, metric: str, arms: Iterable[str]) -> dict[str, dict[int, float]]:
    """The values of a metric by arm and seed."""
    own = {arm: values[(values["metric"] == metric) & (values["arm"] == arm)] for arm in arms}
    return {arm: dict(zip(each["seed"], each["value"], strict=True)) for arm, each in own.items()}


def by_metric(values: pd.DataFrame, run: Run) -> dict[str, dict[str, Any]]:
    """The values of a run, each with its step."""
    own = values[(values["arm"] == run.arm) & (values["seed"] == run.seed)]
    return {row["metric"]: {"value": row["value"], "step": row["step"]} for row in own.to_dict("records")}


def as_markdown(
    sweep: Sweep,
    values: pd.DataFrame,
    summaries: Mapping[str, Sequence[ArmSummary]],
    states: Mapping[str, str],
    known: Set[str],
) -> str:
    """The table of every metric, what the arms are, what is missing, and how to read it."""
    blocks = [f"# {sweep.name}", _arms(sweep)]
    for metric, column in summaries.items():
        own = values[values["metric"] == metric]
        steps = sorted(own.dropna()["step"].unique())
        blocks.append(f"## {metric}")
        missing = f"No finished run has it{did_you_mean(metric, known)}."
        blocks.append(table(column, num_seeds=len(sweep.seeds)) if steps else missing)
        if lost := [f"{run['arm']} seed {run['seed']}" for _, run in own[own["value"].isna()].iterrows()]:
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
