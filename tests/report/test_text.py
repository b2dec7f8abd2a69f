"""The command: a page, or a run in a few lines of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.commands.report import main
from grpo.run.folder import RunDir
from tests.support.stored_runs import scored, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", {1: [scored(["a", "b"], [0.0, 1.0])]})


def test_the_text_of_a_run_has_its_warnings_and_how_its_figures_have_moved(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    for step in range(1, 31):
        row = {"step": step, "reward/mean": step / 30, "groups/no_signal": 0.9, "eval/a/length": 3.0}
        RunDir(run).append_metrics(row | ({"eval/a/accuracy": 0.2} if step in (10, 20, 30) else {}))
    assert main([str(run), "--text"]) == 0
    head, warning, labels, *table = capsys.readouterr().out.splitlines()
    assert head == f"{run}: step 30 of 2"
    assert warning.startswith("warning: 90% of the groups")
    assert labels.split() == ["mean", "of", "first", "latest"]
    # Means of steps 1 to 10 and 21 to 30: 5.5 / 30 and 25.5 / 30.
    assert [line.split() for line in table] == [
        ["reward/mean", "0.1833", "0.85"],
        ["eval/a/accuracy", "0.2", "0.2"],
        ["groups/no_signal", "0.9", "0.9"],
    ]
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "rollouts"]


def test_a_run_without_a_step_is_said_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run), "--text"]) == 0
    assert capsys.readouterr().out == f"{run}: step 0 of 2\n"


def test_the_page_is_written_into_the_runs_folder(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run), "--no-clips"]) == 0
    page = run / "report" / "index.html"
    assert capsys.readouterr().out == f"written: {page}\n"
    assert page.is_file() and (run / "report" / "data" / "index.js").is_file()


@pytest.mark.parametrize("options", [[], ["--text"], ["--serve"]])
def test_a_folder_that_is_no_run_is_an_error_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path), *options]) == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path}: no config.yaml in it, so it is not a run's folder\n"
    )


def test_a_model_folder_is_told_from_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / "config.json").touch()
    (tmp_path / "run" / "config.yaml").touch()
    assert main([str(final)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {final} is a model folder; its run is {tmp_path}/run")
    assert main([str(tmp_path / "gone")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/gone: no such folder\n"
