"""The files that a sweep leaves, from runs that end in a moment."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from grpo.commands.sweeps.plan import Run, Sweep
from grpo.commands.sweeps.results import check_results, points_of, rows_of, values_of, write_results
from tests.support import stand_in


def finished(tmp_path: Path, arm: str, seed: int, rows: list[dict[str, float]]) -> Run:
    """A run of two steps with these rows."""
    run = stand_in.make_run(tmp_path, arm, seed)
    (run.folder / "final").mkdir(parents=True)
    (run.folder / "final" / "training.json").write_text('{"step": 2}')
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def rows(*scores: float) -> list[dict[str, float]]:
    return [{"step": step, "score": score} for step, score in enumerate(scores)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two arms, two seeds; one run failed. The sweep's folder."""
    sweep = Sweep(
        name="small", out=str(tmp_path / "out"), config=["demo.yaml"], overrides=["num_steps=2"],
        arms={"base": [], "+more": {"a.b": 1}}, seeds=[0, 1], metrics=["score", "nowhere", "scroe"],
    )  # fmt: skip
    runs = [
        finished(tmp_path, "base", 0, rows(0.0, 0.1, 0.2)),
        finished(tmp_path, "+more", 0, rows(0.0, 0.5, 0.9)),
        finished(tmp_path, "base", 1, rows(0.0, 0.1, 0.4)),
        stand_in.make_run(tmp_path, "+more", 1),
    ]
    write_results(sweep, runs, {"+more seed 1": "exit status 1: error: out of luck"})
    return tmp_path / "out"


def test_the_report_has_a_table_per_metric_and_names_what_is_missing(written: Path) -> None:
    report = (written / "results.md").read_text()
    assert "- +more: `a.b=1`\n" in report and "- base: as it is\n" in report
    assert "| base | 2 | 0.300 | -0.971 to 1.571 | – | – |" in report  # 0.3 +- 12.706 * 0.1
    assert "| +more | 1 | 0.900 | – | +0.700 | – |" in report  # seed 0 alone: 0.9 - 0.2
    assert "## nowhere\n\nNo finished run has it." in report
    assert "## scroe\n\nNo finished run has it (did you mean 'score'?)." in report
    assert "- +more seed 1: failed: exit status 1: error: out of luck" in report


def test_the_csv_has_a_row_per_run_and_metric(written: Path) -> None:
    with (written / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["metric"], row["value"], row["step"]) for row in found] == [
        ("base", "0", "score", "0.2", "2"),
        ("+more", "0", "score", "0.9", "2"),
        ("base", "1", "score", "0.4", "2"),
    ]


def test_the_json_holds_runs_values_and_statistics(written: Path) -> None:
    found = json.loads((written / "results.json").read_text())
    assert found["runs"]["base seed 1"] == "finished" and found["runs"]["+more seed 1"].startswith("failed: ")
    assert found["values"]["+more seed 0"]["score"] == {"value": 0.9, "step": 2}
    (base, more) = found["metrics"]["score"]
    assert base["mean"] == pytest.approx(0.3) and more["difference"] == pytest.approx(0.7)
    assert (written / "results.png").stat().st_size > 1000


def test_a_value_is_the_mean_over_the_last_rows_that_have_the_metric(tmp_path: Path) -> None:
    run = finished(tmp_path, "base", 0, [*rows(0.0, 0.4, 0.8), {"step": 3, "other": 1.0}])
    points = points_of(
        rows_of([run, stand_in.make_run(tmp_path, "unfinished")]), ["score", "other", "nowhere"]
    )

    def found(last: int) -> list[tuple[str, float, int]]:
        values = values_of(points, last=last)
        return [*zip(values["metric"], values["value"], values["step"], strict=True)]

    assert found(1) == [("score", 0.8, 2), ("other", 1.0, 3)]
    assert found(2) == [("score", pytest.approx(0.6), 2), ("other", 1.0, 3)]


def test_a_metric_that_is_not_finite_at_the_end_is_named_and_left_out(tmp_path: Path) -> None:
    sweep = Sweep(name="s", out=str(tmp_path / "out"), arms={"a": [], "b": []}, seeds=[0], metrics=["score"])
    runs = [
        finished(tmp_path, "a", 0, rows(0.0, 1.0, float("nan"))),
        finished(tmp_path, "b", 0, rows(0.0, float("inf"), 1.0)),
    ]
    write_results(sweep, runs, {})
    report = (tmp_path / "out" / "results.md").read_text()
    assert "| a | 0 | – |" in report and "| b | 1 | 1.000 |" in report
    assert "Left out, because it is not finite at their end: a seed 0." in report
    found = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert list(found["values"]["b seed 0"]) == ["score"] and not found["values"]["a seed 0"]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"base": []}, "an arm '\\+more' that is not in this sweep"),
        ({"base": [], "+more": {"a.b": 2}}, "an arm '\\+more' with other changes"),
        ({"base": [], "+more": {"a.b": 1}, "third": None}, None),
    ],
)
def test_the_results_of_another_sweep_are_not_written_over(
    written: Path, arms: dict[str, object], message: str | None
) -> None:
    sweep = Sweep(name="small", out=str(written), arms=arms)
    if message is None:
        check_results(sweep)
        return
    with pytest.raises(ValueError, match=f"out: .*results.json has {message}"):
        check_results(sweep)


def test_values_of_different_steps_are_noticed(tmp_path: Path) -> None:
    sweep = Sweep(name="s", out=str(tmp_path / "out"), arms={"a": [], "b": []}, seeds=[0], metrics=["score"])
    runs = [
        finished(tmp_path, "a", 0, rows(0.0, 1.0, 1.0)),
        finished(tmp_path, "b", 0, rows(0.0, 1.0, 1.0, 1.0)),
    ]
    write_results(sweep, runs, {})
    assert "of different steps: 2, 3." in (tmp_path / "out" / "results.md").read_text()
