"""Runs that end before their last step: by a signal, with their launcher, or by an error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Never

import pytest

from grpo import train
from grpo.evaluation import Evaluator
from grpo.run.folder import RunDir, checkpoint_steps, read_rows
from grpo.run.stopping import AGAIN_AFTER_S, EXIT_CODE, Stopped, StopRequest, end_with_launcher, failure_line
from grpo.trainer import GRPOTrainer
from tests.support import tiny
from tests.support.processes import is_running, wait_until
from tests.support.runs import SMALL, data, repeatable, reset_process_state, run
from tests.support.trainers import start_trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_at_once_what_has_not_begun_to_train(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest(), pytest.raises(Stopped, match=f"stopped by {number.name} before the first step"):
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_a_signal_in_training_waits_for_the_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with StopRequest() as stop:
        stop.training_begins(within_s=1000.0)
        assert not stop.is_asked()
        # As a terminal and the launcher send it: the second is the same Ctrl-C.
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked() and stop.name == "SIGINT"
        now += AGAIN_AFTER_S + 0.1
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher has ended meanwhile
        with pytest.raises(Stopped, match="in the midst of a step"):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.split("\n")[1:-1] == [
        "SIGINT: the run stops after this step, with a checkpoint (Ctrl-C again: at once, without one)"
    ]


TRAINS = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from grpo.run.stopping import StopRequest

def wait_in_c():
    # No signal interrupts this, as none does a collective.
    lock = ctypes.create_string_buffer(64)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(lock)

with StopRequest() as stop:
"""
SELF = "os.kill(os.getpid(), signal.SIGTERM)"
TOO_LONG = "no step ended within checkpoint.stop_within_s=0.01 s, so nothing was saved"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["stop.training_begins(0.01)", SELF, "time.sleep(100)"], TOO_LONG),
        (
            ["stop.training_begins(0.01)", f"threading.Timer(0.3, lambda: {SELF}).start()", "wait_in_c()"],
            TOO_LONG,
        ),
        (
            ["stop.training_begins(0.01)", SELF, "stop.training_ends()", "time.sleep(100)"],
            "what is done after training took too long",
        ),
    ],
)
def test_a_stop_that_takes_too_long_is_not_waited_for(lines: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "stopped.txt"
    file.write_text("of an earlier start")
    code = TRAINS + f"    stop.tells(Path({str(file)!r}))\n" + "".join(f"    {line}\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny.ROOT, check=False, timeout=60
    )
    assert done.returncode == EXIT_CODE == 75
    assert said in done.stderr and said in file.read_text()


def test_a_stop_ends_a_process_whose_error_stream_nobody_reads() -> None:
    code = TRAINS + f"    stop.training_begins(0.01)\n    {SELF}\n    time.sleep(100)\n"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=write, cwd=tiny.ROOT)
    os.close(write)
    assert process.wait(timeout=60) == EXIT_CODE


@pytest.mark.parametrize("is_told_first", [False, True])
def test_a_process_does_not_wait_for_one_that_has_failed(is_told_first: bool) -> None:
    """The launcher is this process; it sends SIGTERM to all as soon as one fails, and where it is told to stop."""
    code = TRAINS + (
        "    stop.training_begins(30.0)\n    print('trains', flush=True)\n"
        "    sys.stdin.read() if os.environ['RANK'] == '1' else wait_in_c()\n"
    )
    started: list[subprocess.Popen[str]] = []
    for rank in "10":
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "RANK": rank, "LOCAL_WORLD_SIZE": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tiny.ROOT,
        )
        assert process.stdout is not None and process.stdout.readline() == "trains\n"
        started.append(process)
    fails, waits = started
    if is_told_first:
        waits.terminate()
        assert waits.stderr is not None
        announcement = waits.stderr.readline() + waits.stderr.readline()
        assert "SIGTERM: the run stops after this step, with a checkpoint" in announcement
    fails.communicate()
    if not is_told_first:
        waits.terminate()
    _, said = waits.communicate(timeout=60)
    assert waits.returncode == 1
    assert said == "\nanother process of the run has ended, and this one with it\n"


def test_only_the_first_process_says_that_the_run_stops(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with StopRequest() as stop:
        stop.training_begins(within_s=1000.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked()
    assert capfd.readouterr().err == ""


LAUNCHER = """
import subprocess, sys
code = '''
import os, sys, time
from grpo.run.stopping import Stopped, StopRequest, end_with_launcher
end_with_launcher()
try:
    with StopRequest():
        print(os.getpid(), flush=True)
        time.sleep(100)
except Stopped:
    open(sys.argv[1], "w").close()
'''
subprocess.run([sys.executable, "-c", code, sys.argv[1]])
"""


@pytest.mark.parametrize("name", ["torchrun", "plain"])
def test_a_launcher_that_is_killed_alone_leaves_no_trainer(name: str, tmp_path: Path) -> None:
    script, mark = tmp_path / name, tmp_path / "stopped"
    script.write_text(LAUNCHER)
    launcher = subprocess.Popen(
        [sys.executable, str(script), str(mark)], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    if name == "torchrun":
        wait_until(mark.exists)
    else:  # a shell may end, and what it has started goes on
        assert is_running(pid)
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_running(pid))


KILLS_ITS_LAUNCHER = """
def end_with_parent(number):
    launcher = os.getppid()
    os.kill(launcher, 9)
    while os.getppid() == launcher:
        time.sleep(0.01)

import grpo.run.stopping
grpo.run.stopping.end_with_parent = end_with_parent
print(os.getpid(), flush=True)
end_with_launcher()
"""


def test_a_launcher_that_ended_before_it_was_watched_leaves_no_trainer(tmp_path: Path) -> None:
    script = tmp_path / "torchrun"
    script.write_text(LAUNCHER.replace("\nend_with_launcher()\n", KILLS_ITS_LAUNCHER))
    launcher = subprocess.Popen(
        [sys.executable, str(script), "mark"], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    launcher.wait()
    wait_until(lambda: not is_running(pid))


def test_a_trainer_without_a_parent_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 0)  # as the first process of a container sees it
    end_with_launcher()


def test_a_mistake_that_another_process_has_reported_ends_this_one_without_a_traceback() -> None:
    code = (
        "import os, signal, time\nfrom grpo import train\nsleep = time.sleep\n"
        "time.sleep = lambda _: (os.kill(os.getpid(), signal.SIGTERM), sleep(100))\n"
        "train.main(['no_such_key=1'])\n"
    )
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tiny.ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == -signal.SIGTERM and done.stderr == ""


FEW = ["num_steps=3", "eval.every_steps=0", "checkpoint.every_steps=0"]


def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_uninterrupted(
    clips: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start_trainer([*SMALL, *data(clips), *FEW, f"run_dir={folder}"], log)
    wait_until(lambda: len(read_rows(folder / "metrics.jsonl")) >= 2, timeout_s=120)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    last = log.read_text().strip().splitlines()[-1]
    assert process.exitcode == EXIT_CODE, log.read_text()
    [step] = re.findall(r"^stopped after step (\d), which is saved; the same command goes on$", last)
    assert len(read_rows(folder / "metrics.jsonl")) == int(step) + 1
    assert not (folder / "final").exists()
    assert (folder / "stopped.txt").read_text() == last + "\n"
    rows = run(folder, clips, *FEW)
    assert not (folder / "stopped.txt").exists()
    assert repeatable(rows) == repeatable(run(tmp_path / "whole", clips, *FEW))


def test_a_run_that_is_told_to_stop_saves_before_an_evaluation(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(self: Evaluator, engine: object) -> Never:
        steps.append(checkpoint_steps(tmp_path / "run" / "checkpoints"))
        raise Stopped("as if it took too long")

    def step(self: GRPOTrainer, number: int) -> None:
        monkeypatch.setattr(Evaluator, "run", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)

    steps: list[list[int]] = []
    monkeypatch.setattr(GRPOTrainer, "step", step)
    with pytest.raises(SystemExit):
        train.main([*SMALL, *data(clips), f"run_dir={tmp_path}/run", "eval.every_steps=1"])
    reset_process_state()
    assert steps == [[1]]


def test_a_failure_in_training_is_one_line_and_its_traceback_a_file(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: GRPOTrainer, number: int) -> None:
        raise KeyError("a\nbug")

    monkeypatch.setattr(GRPOTrainer, "step", step)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        train.main([*SMALL, *data(clips), *FEW, f"run_dir={folder}"])
    reset_process_state()
    assert caught.value.code == (
        rf"error: KeyError: 'a\nbug'; there is no checkpoint; {folder}/traceback_0.txt has the traceback"
    )
    said = (folder / "traceback_0.txt").read_text()
    assert "in step" in said and 'raise KeyError("a\\nbug")' in said


def test_a_failure_says_where_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_000004").mkdir(parents=True)
    line = failure_line(RuntimeError("step 6: gone\nmore"), RunDir(tmp_path), 1)
    assert line.startswith("error: step 6: gone; the newest checkpoint is of step 4; ")
    full = OSError(28, "No space left on device")
    assert f"No space left on device (in {tmp_path}); " in failure_line(full, RunDir(tmp_path), 0)
    full = OSError(28, "No space left on device", "rollouts/x")
    line = failure_line(full, RunDir(tmp_path / "none"), 0)
    assert line.startswith(
        "error: OSError: [Errno 28] No space left on device: 'rollouts/x'; there is no checkpoint;"
    )
