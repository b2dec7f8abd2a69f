"""Runs in processes: retried once, named when they fail, none stopping the others, none left behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo.commands.sweeps import execute
from grpo.commands.sweeps.execute import (
    Slot,
    carry_out,
    environment_of,
    last_words,
    run_all,
    slots_of_machine,
)
from grpo.commands.sweeps.plan import LaunchConfig, Run
from tests.support import stand_in

LAUNCH = LaunchConfig()


@pytest.fixture(autouse=True)
def quick_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(tmp_path, monkeypatch)


async def here(run: Run, slot: Slot) -> str | None:
    """The runner of this machine, as the command makes it."""
    return await carry_out(run, LAUNCH, environment_of(slot))


def carry_out_all(runs: list[Run], *slots: Slot) -> tuple[dict[str, str], list[str]]:
    """The failures, and what was said."""
    said: list[str] = []
    running = run_all(runs, here, slots or [None], say=said.append, after_each=lambda failures: None)
    return asyncio.run(running), said


async def stop(
    runs: Sequence[Run], num_slots: int, once: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Carry runs out until something is so, and stop then as Ctrl-C does."""
    slots = [None] * num_slots
    task = asyncio.create_task(run_all(runs, here, slots, say=say, after_each=lambda failures: None))
    deadline = time.monotonic() + 20
    while not once():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def attempts(run: Run) -> int:
    file = run.folder / "attempts"
    return len(file.read_text()) if file.exists() else 0


def is_alive(pid: int) -> bool:
    """A zombie, which nobody in a container may come to collect, is dead."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


def test_a_failed_run_is_tried_twice_and_named_and_stops_no_other(tmp_path: Path) -> None:
    bad, good = stand_in.make_run(tmp_path, "bad", behaviour="fails"), stand_in.make_run(tmp_path, "good")
    failures, said = carry_out_all([bad, good])
    assert failures == {"bad seed 0": "exit status 1: error: data.train: no such file"}
    assert good.is_finished() and (attempts(bad), attempts(good)) == (2, 1)
    assert any(
        "bad seed 0: failed, tried once more: exit status 1: error: data.train" in text for text in said
    )


def test_a_run_that_fails_once_is_no_failure(tmp_path: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm", behaviour="fails once")
    assert carry_out_all([run])[0] == {} and run.is_finished() and attempts(run) == 2
    assert run.log.read_text().count("$ ") == 2  # the log keeps both


def test_a_run_that_ends_well_without_a_result_has_failed(tmp_path: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm", behaviour="writes nothing")
    assert "arm seed 0" in carry_out_all([run])[0]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm")
    carry_out_all([run])
    failures, said = carry_out_all([run])
    assert failures == {} and attempts(run) == 1 and said == ["arm seed 0: is finished already"]


def test_what_a_run_leaves_running_is_killed(tmp_path: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm", behaviour="leaves a child")
    carry_out_all([run])
    assert run.is_finished()
    deadline = time.monotonic() + 10
    while is_alive(int((run.folder / "child").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_share_the_slots_and_each_has_its_gpus_to_itself(tmp_path: Path) -> None:
    runs = [stand_in.make_run(tmp_path, "arm", seed, behaviour="sleeps") for seed in range(4)]
    carry_out_all(runs, "0,1", "2,3")
    spans: dict[str, list[tuple[float, float]]] = {"0,1": [], "2,3": []}
    for run in runs:
        environment = json.loads((run.folder / "environment.json").read_text())
        span = float((run.folder / "started").read_text()), float((run.folder / "ended").read_text())
        spans[environment["CUDA_VISIBLE_DEVICES"]].append(span)
    for first, second in map(sorted, spans.values()):
        assert first[1] <= second[0]
    (one, _), (other, _) = spans.values()
    assert max(one[0], other[0]) < min(one[1], other[1])  # at the same time


def test_a_sweep_that_is_stopped_ends_its_runs_and_starts_no_more(tmp_path: Path) -> None:
    hanging = [stand_in.make_run(tmp_path, "arm", seed, behaviour="hangs") for seed in range(3)]
    started = [run.folder / "started" for run in hanging]
    said: list[str] = []
    start = time.monotonic()
    asyncio.run(stop(hanging, 2, lambda: started[0].exists() and started[1].exists(), said.append))
    assert time.monotonic() - start < 30 and not started[2].exists()
    for run in hanging[:2]:
        # It was given the time to leave by itself.
        assert attempts(run) == 1 and (run.folder / "asked").exists()
        assert not is_alive(int((run.folder / "pid").read_text()))


def test_a_run_that_does_not_stop_when_it_is_asked_to_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "PATIENCE_S", 0.1)
    deaf = stand_in.make_run(tmp_path, "arm", behaviour="does not listen")
    asyncio.run(stop([deaf], 1, (deaf.folder / "started").exists, lambda text: None))
    assert not is_alive(int((deaf.folder / "pid").read_text()))


def test_ctrl_c_in_the_middle_stops_what_runs(tmp_path: Path) -> None:
    quick = stand_in.make_run(tmp_path, "quick")
    hanging = stand_in.make_run(tmp_path, "hanging", behaviour="hangs")
    said: list[str] = []
    asyncio.run(
        stop([quick, hanging], 2, lambda: quick.is_finished() and attempts(hanging) == 1, said.append)
    )
    assert (hanging.folder / "asked").exists()
    assert not is_alive(int((hanging.folder / "pid").read_text()))
    assert not any("failed" in text.lower() for text in said)  # it was stopped: not tried again, not named


def test_results_that_cannot_be_written_end_the_other_runs_and_are_said(tmp_path: Path) -> None:
    quick = stand_in.make_run(tmp_path, "quick", behaviour="sleeps")
    hanging = stand_in.make_run(tmp_path, "hanging", behaviour="hangs")

    def fail(failures: dict[str, str]) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        asyncio.run(run_all([quick, hanging], here, [None, None], say=lambda text: None, after_each=fail))
    assert quick.is_finished() and not is_alive(int((hanging.folder / "pid").read_text()))


LOGS = {
    "step 1\rstep 2\nerror: data.train: no such file\n": "error: data.train: no such file",
    'Traceback:\n  File "x"\nValueError: bad\nsubprocess.CalledProcessError: Command [..] failed': "ValueError: bad",
    "[rank0]: RuntimeError: out\nE0101 failed\ntorch.distributed.elastic.ChildFailedError: \n====": (
        "[rank0]: RuntimeError: out"
    ),
    "torch.OutOfMemoryError: CUDA out of memory\nbye": "torch.OutOfMemoryError: CUDA out of memory",
    "a Warning: ValueError: earlier\nlast line\n\n": "last line",
    "  0%|   |\r 50%|#  |": "50%|#  |",
    "": "nothing in its log",
}


@pytest.mark.parametrize("log", LOGS)
def test_the_reason_is_found_in_the_log(log: str) -> None:
    assert last_words(log) == LOGS[log]


def test_gpus_are_dealt_out_and_too_few_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7,9")
    assert slots_of_machine(None, 2) == ["4,5", "6,7"]
    assert slots_of_machine(1, 2) == ["4,5"]
    with pytest.raises(ValueError, match="--jobs 3: 5 GPUs have room for 2 runs of 2 processes"):
        slots_of_machine(3, 2)
    with pytest.raises(ValueError, match="--jobs 1: 5 GPUs have room for 0 runs of 8 processes"):
        slots_of_machine(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots_of_machine(None, 1) == [None] and slots_of_machine(3, 1) == [None] * 3


def test_small_runs_on_a_cpu_get_one_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = stand_in.make_run(tmp_path, "arm")
    carry_out_all([run])
    assert json.loads((run.folder / "environment.json").read_text())["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in os.environ


def test_runs_are_started_by_accelerate_on_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.undo()  # the real command
    run = Run(arm="a", seed=0, folder=Path("x"), argv=("configs/demo.yaml", "seed=0"), num_steps=1)
    command = execute.command_of(
        run, LaunchConfig(config_file="launch/accelerate/zero2.yaml", num_processes=4)
    )
    arguments = launch_command_parser().parse_args(command[3:])
    assert (arguments.num_processes, arguments.main_process_port, arguments.quiet) == (4, 0, True)
    assert Path(arguments.training_script).is_file()
    assert arguments.training_script_args == ["configs/demo.yaml", "seed=0"]
