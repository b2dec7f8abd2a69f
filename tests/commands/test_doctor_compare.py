"""`egogrpo doctor --compare`: two runs that differ in one thing are told by that thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.doctor.command import main
from grpo.run.folder import RunDir

CONFIG = "run_dir: {name}\nseed: 0\noptim: {{lr: {lr}}}\nrewards: {{accuracy: {{weight: 1.0}}}}\n"
MANIFEST: dict[str, Any] = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "c" * 40, "changes": False, "diff": "", "diff_sha256": "0", "untracked": {}},
    "hardware": {"gpus": ["H200, 139.8 GiB"], "cpu": "x"},
    "data": {"train.jsonl": "d" * 64},
    "model": "m" * 64,
    "rewards": {},
    "media": {"fps": 2.0},
    "num_processes": 8,
    "seeds": {"run": 0},
}


def write(folder: Path, *, lr: str = "1e-6", last_step: int = 5, **changes: Any) -> Path:
    """A run of which some parts of the manifest are others."""
    run = RunDir(folder)
    run.open(CONFIG.format(name=folder, lr=lr), {**MANIFEST, **changes})
    for step in range(last_step + 1):
        row = {"step": step, "loss": step / 10, "reward/mean": 1.0, "time/step": len(folder.name) + step}
        run.append_metrics(row)
    return folder


def said(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = main(["--compare", str(a), str(b)])
    return status, capsys.readouterr().out.splitlines()


def test_runs_that_differ_in_times_and_folders_alone_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = said(write(tmp_path / "a"), write(tmp_path / "other"), capsys)
    assert status == 0 and lines[:2] == [f"A = {tmp_path}/a", f"B = {tmp_path}/other"]
    assert lines[2:-1] == [
        f"{title}: the same"
        for title in (
            "settings", "code", "packages", "hardware", "data", "the model it starts from", "files of rewards",
            "media settings", "seeds", "Python and processes",
        )
    ]  # fmt: skip
    assert lines[-1] == "metrics: the same to the last digit in all 6 steps that both have, but for times"


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "settings": ({"lr": "2e-6"}, "optim.lr: 1e-6 | 2e-6"),
    "packages": ({"packages": {"torch": "2.12.0"}}, "torch: 2.13.0 | 2.12.0"),
    "hardware": (
        {"hardware": {"gpus": ["A100, 79.3 GiB"], "cpu": "x"}},
        'gpus: ["H200, 139.8 GiB"] | ["A100, 79.3 GiB"]',
    ),
    "data": ({"data": {"train.jsonl": "e" * 64}}, f"train.jsonl: {'d' * 64} | {'e' * 64}"),
    "the model it starts from": ({"model": "n" * 64}, f"model: {'m' * 64} | {'n' * 64}"),
    "files of rewards": ({"rewards": {"mine.py": "f"}}, "mine.py: none | f"),
    "media settings": ({"media": {"fps": 1.0}}, "fps: 2.0 | 1.0"),
    "seeds": ({"seeds": {"run": 1}}, "run: 0 | 1"),
    "Python and processes": ({"num_processes": 4}, "num_processes: 8 | 4"),
}


@pytest.mark.parametrize("title", CHANGES)
def test_what_differs_is_named_under_its_title(
    title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, line = CHANGES[title]
    status, lines = said(write(tmp_path / "a"), write(tmp_path / "b", **changes), capsys)
    place = lines.index(f"{title}: 1 differ (A | B)")
    assert status == 1 and lines[place + 1] == f"  {line}"
    assert sum("differ (A | B)" in each for each in lines) == 1


def test_code_that_was_changed_is_shown_as_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**MANIFEST["git"], "changes": True, "diff": "-beta = 1\n+beta = 2\n", "diff_sha256": "1"}
    status, lines = said(write(tmp_path / "a"), write(tmp_path / "b", git=changed), capsys)
    assert status == 1 and "code: 2 differ (A | B)" in lines
    assert lines[-3:-1] == ["  +-beta = 1", "  ++beta = 2"]


def test_the_first_step_with_other_figures_and_the_first_beyond_rounding_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a", last_step=1), write(tmp_path / "b", last_step=1)
    for step, mean in ((2, 1.0 + 1e-7), (3, 1.5), (4, 2.0)):
        RunDir(a).append_metrics({"step": step, "loss": 0.2, "reward/mean": 1.0})
        RunDir(b).append_metrics({"step": step, "loss": 0.2, "reward/mean": mean})
    RunDir(b).append_metrics({"step": 5})
    status, lines = said(a, b, capsys)
    assert status == 1 and lines[-5:] == [
        "metrics: the first that differ are of step 2 (A | B)",
        "  reward/mean: 1.0 | 1.0000001",
        "metrics: by more than 1% from step 3 on (A | B)",
        "  reward/mean: 1.0 | 1.5",
        "metrics: A ends with step 4, B ends with step 5",
    ]
    assert main(["--compare", str(a), str(b), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert (found["first_step"], found["far_step"]) == (2, 3)


def test_an_older_runs_manifest_is_compared_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    (b / "manifest.json").write_text(json.dumps({"python": "3.11.7", "git": {"commit": "c" * 40}}))
    status, lines = said(a, b, capsys)
    assert status == 0 and "packages: not recorded in B" in lines and "seeds: not recorded in B" in lines
    assert "  untracked: not recorded in B" in lines and "  num_processes: not recorded in B" in lines
    (b / "manifest.json").write_text(json.dumps({**MANIFEST, "git": None, "hardware": {"cpu": "y"}}))
    status, lines = said(a, b, capsys)
    place = lines.index("hardware: 1 differ (A | B)")
    assert status == 1 and lines[place + 1 : place + 3] == ["  cpu: x | y", "  gpus: not recorded in B"]
    assert "code: not recorded in B" in lines


@pytest.mark.parametrize(("last_step", "end"), [(3, "ends with step 3"), (-1, "has none")])
def test_a_run_that_ended_earlier_differs(
    last_step: int, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = said(write(tmp_path / "a"), write(tmp_path / "b", last_step=last_step), capsys)
    assert status == 1 and lines[-1] == f"metrics: A ends with step 5, B {end}"


def test_a_figure_that_is_not_finite_in_one_run_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a", last_step=0), write(tmp_path / "b", last_step=0)
    for run, loss in ((a, "NaN"), (b, "NaN")):
        with RunDir(run).metrics_file.open("a") as file:
            file.write(f'{{"step": 1, "loss": {loss}}}\n')
    assert said(a, b, capsys)[0] == 0
    for run, loss in ((a, "NaN"), (b, "1.0")):
        with RunDir(run).metrics_file.open("a") as file:
            file.write(f'{{"step": 2, "loss": {loss}}}\n')
    status, lines = said(a, b, capsys)
    assert status == 1 and lines[-1] == "  loss: NaN | 1.0"


def test_a_date_among_the_settings_is_printed_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", lr="2026-01-02")
    assert main(["--compare", str(a), str(b), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"]["settings"][0]["b"] == "2026-01-02"
    assert '  optim.lr: 1e-6 | "2026-01-02"' in said(a, b, capsys)[1]


@pytest.mark.parametrize("damaged", ["", "[]", "{"])
def test_what_is_no_run_is_an_error_in_one_line(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a")
    assert main(["--compare", str(a), str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path}: no config.yaml in it, so it is not a run's folder\n"
    )
    b = write(tmp_path / "b")
    (b / "manifest.json").write_text(damaged)
    assert main(["--compare", str(a), str(b)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {b}/manifest.json: ")
    c = write(tmp_path / "c", last_step=0)
    with RunDir(c).metrics_file.open("a") as file:
        file.write('{"step": null}\n')
    assert main(["--compare", str(a), str(c)]) == 2
    assert capsys.readouterr().err == f"error: {c}/metrics.jsonl:2 is damaged: no row of a step\n"
