"""A run that is followed: what is new is told once, and what a resumed run removes is taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.report.build import Report, names_of
from grpo.report.follow import GrowingFile
from grpo.run.folder import RunDir
from grpo.run.rollout_files import rollout_rows, write_rollouts
from tests.support.stored_runs import scored, write_run


def write(file: Path, *steps: int, note: str = "") -> None:
    with file.open("a") as opened:
        opened.writelines(json.dumps({"step": step, "note": note}) + "\n" for step in steps)


def test_a_growing_file_tells_each_row_once(tmp_path: Path):
    file = GrowingFile(tmp_path / "rows.jsonl")
    assert file.read() == (None, [])
    write(file.path, 1, 2)
    assert file.read() == (None, [{"step": 1, "note": ""}, {"step": 2, "note": ""}])
    assert file.read() == (None, [])
    write(file.path, 3)
    assert file.read() == (None, [{"step": 3, "note": ""}])


def test_a_row_that_is_half_written_waits(tmp_path: Path):
    file = GrowingFile(tmp_path / "rows.jsonl")
    file.path.write_text('{"step": 1}\n{"ste')
    assert file.read() == (None, [{"step": 1}])
    with file.path.open("a") as opened:
        opened.write('p": 2}\n')
    assert file.read() == (None, [{"step": 2}])


def test_rows_that_a_resumed_run_removes_are_taken_back(tmp_path: Path):
    run = RunDir(tmp_path)
    write(run.metrics_file, 1, 2, 3, 4)
    file = GrowingFile(run.metrics_file)
    assert len(file.read()[1]) == 4
    run.forget_after(2)
    write(run.metrics_file, 3, note="again")
    # Steps above 2 are no more; step 3 comes again.
    assert file.read() == (2, [{"step": 3, "note": "again"}])
    assert file.read() == (None, [])


def test_several_rows_of_a_step_of_which_some_are_gone_come_again(tmp_path: Path):
    file = GrowingFile(tmp_path / "failures.jsonl")
    write(file.path, 1, 2, 2)
    file.read()
    file.path.unlink()
    write(file.path, 1, 2)
    assert file.read() == (1, [{"step": 2, "note": ""}])


def test_a_file_that_is_written_anew_with_all_of_its_rows_tells_only_the_new_ones(tmp_path: Path):
    file = GrowingFile(tmp_path / "rows.jsonl")
    write(file.path, 1, 2)
    file.read()
    copy = tmp_path / "copy"
    write(copy, 1, 2, 3)
    copy.replace(file.path)
    assert file.read() == (None, [{"step": 3, "note": ""}])


def test_a_damaged_row_is_named(tmp_path: Path):
    file = GrowingFile(tmp_path / "rows.jsonl")
    file.path.write_text("[1]\n")
    with pytest.raises(ValueError, match="rows.jsonl is damaged"):
        file.read()


def lines(report: Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.index.file.read_text().splitlines()]


def test_the_index_grows_at_its_end_alone(tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a", "b"], [0.0, 1.0])]})
    report = Report(tmp_path / "out", [folder])
    assert report.update() == 1 and report.update() == 0
    before = report.index.file.read_bytes()
    write_rollouts(folder / "rollouts", 2, rollout_rows(scored(["c", "d"], [1.0, 1.0])))
    write(folder / "metrics.jsonl", 2)
    assert report.update() == 2
    assert report.index.file.read_bytes().startswith(before)
    first, *entries = lines(report)
    assert first["format"] == 1 and first["runs"][0]["name"] == "run"
    assert [next(iter(entry)) for entry in entries] == ["rollouts", "metrics", "rollouts"]
    assert entries[2]["columns"]["total"] == [1.0, 1.0] and entries[2]["step"] == 2


def test_steps_that_are_gone_are_forgotten_and_told_when_they_come_again(tmp_path: Path):
    groups = {step: [scored(["a"], [float(step)])] for step in (1, 2, 3)}
    folder = write_run(tmp_path / "run", groups)
    report = Report(tmp_path / "out", [folder])
    report.update()
    RunDir(folder).forget_after(1)
    write_rollouts(folder / "rollouts", 2, rollout_rows(scored(["again"], [7.0])))
    # Step 2 has another file by now, and step 3 none.
    report.update()
    entries = lines(report)[4:]
    assert entries[0] == {"forget": 0, "what": "rollouts", "after": 2}
    assert [entry["step"] for entry in entries[1:]] == [2] and entries[1]["columns"]["total"] == [7.0]


def test_warnings_are_told_when_they_change(tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a"], [1.0])]})
    report = Report(tmp_path / "out", [folder])
    for step in range(1, 12):
        RunDir(folder).append_metrics({"step": step, "groups/no_signal": 1.0})
        report.update()
    (told,) = [entry for entry in lines(report) if "warnings" in entry]
    assert told["list"][0]["name"] == "flat groups" and "100% of the groups" in told["list"][0]["text"]
    RunDir(folder).forget_after(5)
    report.update()
    assert lines(report)[-1] == {"warnings": 0, "list": []}


def test_a_damaged_file_hides_no_other_step_and_no_other_run(tmp_path: Path):
    groups = {step: [scored(["a"], [float(step)])] for step in (1, 2, 3)}
    folders = [write_run(tmp_path / name, groups) for name in ("run", "other")]
    (folders[0] / "rollouts" / "step_000002.parquet").write_bytes(b"not whole")
    (folders[0] / "metrics.jsonl").touch()
    report = Report(tmp_path / "out", folders)
    report.update()
    shown = [(entry["rollouts"], entry["step"]) for entry in lines(report) if "rollouts" in entry]
    assert shown == [(0, 1), (0, 3), (1, 1), (1, 2), (1, 3)]
    (failure,) = [entry["rows"] for entry in lines(report) if "failures" in entry]
    assert failure[0]["step"] == 2 and "step_000002.parquet" in failure[0]["reason"]
    assert report.update() == 0 and len(report.unread()) == 1
    (folders[0] / "metrics.jsonl").write_text("[1]\n")
    write(folders[1] / "metrics.jsonl", 1)
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
        report.update()
    assert lines(report)[-1]["metrics"] == 1


def test_a_folder_with_other_files_is_left_as_it_is_and_an_older_report_is_replaced(tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a"], [1.0])]})
    data = tmp_path / "project" / "data" / "egoschema" / "questions.json"
    data.parent.mkdir(parents=True)
    data.write_text("[]")
    with pytest.raises(ValueError, match=r"--out: .*project has files in it and is no report"):
        Report(tmp_path / "project", [folder])
    assert [*(tmp_path / "project").rglob("*.*")] == [data]
    out = tmp_path / "out"
    Report(out, [folder]).update()
    stale = out / "data" / "0" / "rollouts_000009.js"
    stale.touch()
    kept = out / "data" / "mine" / "questions.json"
    kept.parent.mkdir()
    kept.touch()
    Report(out, [folder])
    assert not stale.exists() and kept.exists()


def test_a_report_is_written_by_one_process_at_a_time(tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a"], [1.0])]})
    report = Report(tmp_path / "out", [folder])
    report.update()
    before = lines(report)
    with pytest.raises(ValueError, match=r"another process is writing .*out; name another folder"):
        Report(tmp_path / "out", [folder])
    assert lines(report) == before and (tmp_path / "out" / "data" / "0" / "rollouts_000001.js").is_file()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no config.yaml"):
        Report(tmp_path / "out", [tmp_path])


def test_runs_of_one_name_are_told_apart_by_what_differs(tmp_path: Path):
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
