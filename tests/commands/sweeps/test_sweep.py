"""The sweep command on real, small training runs: stopped, resumed, with an arm that fails; and its ways to refuse."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.commands.__main__ import main
from grpo.commands.sweeps import command as sweep
from grpo.run.folder import RunDir, read_rows
from tests.commands.sweeps.test_execute import is_alive
from tests.support import runs, tiny

ARMS = """
name: small
config: [{demo}]
arms:
  plain: [rewards.keyframe.weight=0]
  keyframe: {{rewards.keyframe.weight: 1.0}}
  broken: [rollout.max_model_tokens=40]
seeds: [0, 1]
metrics: [eval/heldout/accuracy, rewards/format/mean]
"""
TOO_LONG = r"error: \S+train.jsonl:\d+: sample \S+: its prompt has 63 tokens, .* leaves room for 16"
SMALL = [*runs.SMALL[1:], "num_steps=2", "eval.every_steps=1", "checkpoint.every_steps=1"]


def write_sweep(folder: Path, *, left_out: str = "no arm") -> str:
    file = folder / "sweep.yaml"
    lines = ARMS.format(demo=runs.SMALL[0]).splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith(f"  {left_out}:")))
    return str(file)


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command as a user types it, from the repository's root."""
    command = [sys.executable, "-m", "grpo.commands", "sweep", *arguments]
    return subprocess.Popen(
        command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.slow
def test_a_sweep_is_stopped_resumed_and_tabled_with_a_failing_arm(clips: Path, tmp_path: Path) -> None:
    # Each run is a process that imports torch: one arm that works and one that does not are enough.
    file = write_sweep(tmp_path, left_out="keyframe")
    arguments = [file, "seeds=[0]", f"out={tmp_path}/out", *SMALL, *runs.data(clips)]
    first = tmp_path / "out" / "plain" / "seed_0"

    process = start(*arguments)
    wait_for(first / "checkpoints" / "step_000001", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "stopped; the same command goes on from here" in output
    with RunDir(first).locked():  # its training process is gone
        pass

    process = start(*arguments, "--jobs", "2")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert re.search(f"FAILED broken seed 0: exit status 1: {TOO_LONG}", output)
    report = (tmp_path / "out" / "results.md").read_text()
    assert re.search(f"- broken seed 0: failed: exit status 1: {TOO_LONG}", report) and report in output
    for row in ("| plain | 1 | ", "| broken | 0 | – | – | – | – |"):
        assert report.count(row) == 2  # once for each metric
    assert {path.name for path in (tmp_path / "out").glob("results.*")} == {
        "results.md", "results.csv", "results.json", "results.png",
    }  # fmt: skip

    # The stopped run went on from its checkpoint, to what it would have come to in one go
    assert (first / "log.txt").read_text().count("$ ") == 2
    alone = runs.run(tmp_path / "alone", clips, *SMALL, "rewards.keyframe.weight=0")
    assert runs.repeatable(read_rows(first / "metrics.jsonl")) == runs.repeatable(alone)

    tables = sweep.main([*arguments, "--table"])
    assert tables == 0 and "| plain | 1 | " in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.slow
def test_a_sweep_as_submitit_jobs_and_a_search_on_real_runs(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    pytest.importorskip("optuna")
    space = "search={metric: rewards/format/mean, trials: 2, space: {rewards.format.weight: [0, 1]}}"
    file = write_sweep(tmp_path, left_out="keyframe")
    small = [file, f"out={tmp_path}/out", "seeds=[0]", space, *SMALL, *runs.data(clips)]
    process = start(*small, "slurm.timeout_min=5", "--slurm", "local")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "| plain | 1 | " in output
    assert re.search(f"FAILED broken seed 0: exit status 1: {TOO_LONG}", output)
    process = start(*small, "--search")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "| 1 | " in output and "Maximized over 2 trials" in output, output


def test_a_mistake_is_one_line_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.ROOT)
    file = write_sweep(tmp_path)
    cases = {
        "arms.plain: config: no setting keyfram;": ["arms.plain=[keyfram=1]"],
        "--jobs: must be above 0, not 0": ["--jobs", "0"],
        "slurm.timeout_min is not set": ["--slurm", "local"],
        "--search: the sweep file has no section": ["--search"],
        "sweep: no file nowhere.yaml": ["nowhere.yaml"],
    }
    for message, arguments in cases.items():
        given = arguments if message.startswith("sweep") else [file, *arguments]
        assert sweep.main([*given, f"out={tmp_path}/out"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not [*(tmp_path / "out").glob("*/*")]


def test_two_commands_cannot_run_one_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.ROOT)
    with RunDir(tmp_path / "out").locked():
        assert sweep.main([write_sweep(tmp_path), f"out={tmp_path}/out"]) == 2
    assert "another process is running in" in capsys.readouterr().err


STOPPED = """
import sys, pytest
from pathlib import Path
from grpo.commands.__main__ import main
from tests.support import stand_in
with pytest.MonkeyPatch.context() as patch:
    stand_in.install(Path(sys.argv[1]), patch)
    sys.exit(main(["sweep", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_takes_its_runs_with_it(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(ARMS.format(demo="configs/demo.yaml"))
    given = [str(file), f"out={tmp_path}/out", "model.path=hangs", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path), *given],
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = [tmp_path / "out" / arm / "seed_0" / "started" for arm in ("plain", "keyframe")]
    try:
        for path in started:
            wait_for(path, process, timeout_s=60)
    finally:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; the same command goes on from here" in output, output
    assert "Traceback" not in output
    for path in started:
        # It was given the time to leave by itself.
        assert path.with_name("asked").exists() and not is_alive(int(path.with_name("pid").read_text()))


@pytest.mark.parametrize("missing", ["submitit", "optuna"])
def test_without_an_optional_package_the_command_names_the_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.setitem(sys.modules, missing, None)
    space = "search={metric: loss, space: {rewards.format.weight: [0, 1]}}"
    arguments = {"submitit": ["slurm.timeout_min=5", "--slurm"], "optuna": ["--search", space]}[missing]
    assert main(["sweep", write_sweep(tmp_path), f"out={tmp_path}/out", *arguments]) == 2
    assert f"error: egogrpo sweep needs {missing}: pip install egogrpo[commands]" in capsys.readouterr().err


def test_the_command_starts_without_torch() -> None:
    """`--table` and a mistake in the file are answered at once."""
    code = "import sys, grpo.commands.sweeps.command; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    assert done.stdout.strip() == "False"
