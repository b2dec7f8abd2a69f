"""A run that is launched by `egogrpo train`: its arguments, its signals and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.commands import train
from grpo.commands.train import main
from grpo.run.stopping import EXIT_CODE
from tests.support import tiny

RUN = """
import os, signal, sys, time
from pathlib import Path
Path("arguments.txt").write_text("\\n".join(sys.argv[1:]))
def stop(number, frame):
    Path("run").mkdir(exist_ok=True)
    Path("run/stopped.txt").write_text("stopped")
    print("stopped after its step", flush=True)
    sys.exit(75)
signal.signal(getattr(signal, "SIG" + os.environ["LISTENS_TO"]), stop)
if os.environ["LISTENS_TO"] == "INT":
    sys.exit(3)
print("begun", flush=True)
time.sleep(60)
"""
"""A stand-in for the trainer, since a real one would take longer to start than all that is tested here."""


def launched(folder: Path, listens_to: str) -> subprocess.Popen[str]:
    (folder / "run.py").write_text(RUN)
    code = "import sys; from pathlib import Path; from grpo.commands import train; train.SCRIPT = Path('run.py'); "
    code += "sys.exit(train.main(sys.argv[1:]))"
    options = ["--config_file", str(tiny.ROOT / "launch/accelerate/single.yaml"), "--cpu"]
    settings = [str(tiny.ROOT / "configs/demo.yaml"), "run_dir=run", "optim.lr=1e-5"]
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "LISTENS_TO": listens_to}
    return subprocess.Popen(
        [sys.executable, "-c", code, *options, *settings],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_with_its_own_line_and_status(tmp_path: Path) -> None:
    process = launched(tmp_path, "USR1")
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (EXIT_CODE, "stopped after its step\n")
    assert "Traceback" not in err
    assert (tmp_path / "arguments.txt").read_text().split("\n")[1:] == ["run_dir=run", "optim.lr=1e-5"]


@pytest.mark.slow
def test_a_run_that_fails_has_the_status_1(tmp_path: Path) -> None:
    process = launched(tmp_path, "INT")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err


def test_a_trainer_that_is_killed_leaves_a_terminal_that_scrolls_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = []

    def killed(options: object) -> None:
        assert not released
        raise subprocess.CalledProcessError(-signal.SIGKILL, "train.py")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", killed)
    monkeypatch.setattr(train, "release_terminal", lambda: released.append(True))
    monkeypatch.setattr(train, "SIGNALS", ())
    assert main([str(tiny.ROOT / "configs/demo.yaml"), f"run_dir={tmp_path}/run"]) == 1
    assert released == [True]


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny.ROOT / "configs/demo.yaml"), "optim.lrr=1"]) == 1
    assert capsys.readouterr().err == "error: config: no setting optim.lrr; did you mean optim.lr?\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--num_proceses", "8", "configs/demo.yaml"],
            "no option --num_proceses (did you mean '--num_processes'?)",
        ),
        (["--zzz"], "no option --zzz; accelerate launch --help lists all"),
        (
            ["--num_processes", "many", "a.yaml"],
            "argument --num_processes/--num-processes: invalid int value",
        ),
        (["--num_processes", "8"], "no CONFIG.yaml is named; usage: egogrpo train"),
        (["a.yaml", "--num_processes=8"], "--num_processes=8: options of the launcher stand before a.yaml"),
        (["--config_file", "nowhere/x.yaml", "a.yaml"], "--config_file: no file nowhere/x.yaml"),
    ],
)
def test_a_wrong_option_of_the_launcher_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {said}")


def test_a_mistyped_file_of_the_launcher_is_told_with_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "single.yaml").touch()
    assert main(["--config_file", str(tmp_path / "singel.yaml"), "a.yaml"]) == 1
    there = tmp_path / "single.yaml"
    assert capsys.readouterr().err == (
        f"error: --config_file: no file {tmp_path}/singel.yaml (did you mean '{there}'?); there are {there}\n"
    )


def test_help_names_the_launcher_s_options_and_lists_every_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(
        each in out for each in ("--config_file", "--num_processes", "--num_machines", "group_size: 8")
    )
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: egogrpo train")
