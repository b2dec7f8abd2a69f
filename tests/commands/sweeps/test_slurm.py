"""Runs as submitit jobs: its local cluster with real processes, and its SLURM code against a scheduler of scripts."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from grpo.commands.sweeps.execute import run_all
from grpo.commands.sweeps.plan import LaunchConfig, Run
from tests.commands.sweeps.test_execute import is_alive
from tests.support import stand_in, tiny

pytest.importorskip("submitit")

from grpo.commands.sweeps import slurm  # noqa: E402

FAKE = {
    # Takes the script that submitit wrote and starts it as a job of its own.
    "sbatch": """
for script; do :; done
jobs=$(dirname "$0")/jobs; mkdir -p "$jobs"; id=$(($(ls "$jobs" | wc -l) + 1)); touch "$jobs/$id"
SLURM_JOB_ID=$id setsid bash "$script" > /dev/null 2>&1 &
echo $! > "$jobs/$id"
echo "Submitted batch job $id"
""",
    # Leaves its own options out, and runs the command as the job's only task.
    "srun": """
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2 ;; *) shift ;; esac; done
SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"
""",
    "sacct": """
echo "JobID|State|NodeList|"
for file in $(dirname "$0")/jobs/*; do
  state=COMPLETED; kill -0 "$(cat "$file")" 2> /dev/null && state=RUNNING
  echo "$(basename "$file")|$state|here|"
done
""",
    "scancel": """
for id; do :; done
kill -KILL -- -"$(cat "$(dirname "$0")/jobs/$id")"
""",
}


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands as scripts, first on the path; their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKE.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    return folder


@pytest.fixture
def train_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs import the package anew, so the stand-in takes the place of accelerate itself."""
    package = tmp_path / "path" / "accelerate" / "commands"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "launch.py").write_text(stand_in.SCRIPT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{tiny.ROOT}")


def runner(tmp_path: Path, cluster: str, **resources: object) -> slurm.ClusterRunner:
    given = {"timeout_min": 5, **resources}
    return slurm.ClusterRunner(cluster, tmp_path / "out" / "jobs", LaunchConfig(), given)


def carry_out_all(tmp_path: Path, cluster: str, *runs: Run) -> dict[str, str]:
    on, slots = runner(tmp_path, cluster), [None] * len(runs)
    running = run_all(runs, on, slots, say=lambda text: None, after_each=lambda failures: None)
    return asyncio.run(running)


@pytest.mark.slow
@pytest.mark.usefixtures("train_script", "scheduler")
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_each_run_is_a_job_and_a_failed_one_is_queued_again_and_named(cluster: str, tmp_path: Path) -> None:
    good = stand_in.make_run(tmp_path, "good")
    lucky = stand_in.make_run(tmp_path, "lucky", behaviour="fails once")
    bad = stand_in.make_run(tmp_path, "bad", behaviour="fails")
    failures = carry_out_all(tmp_path, cluster, good, lucky, bad)
    assert failures == {"bad seed 0": "exit status 1: error: data.train: no such file"}
    assert [(run.folder / "attempts").read_text() for run in (good, lucky, bad)] == ["x", "xx", "xx"]
    assert len([*(tmp_path / "out" / "jobs").glob("*_submitted.pkl")]) == 5


def test_jobs_of_the_debug_cluster_are_carried_out_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.install(tmp_path, monkeypatch)
    good, bad = stand_in.make_run(tmp_path, "good"), stand_in.make_run(tmp_path, "bad", behaviour="fails")
    failures = carry_out_all(tmp_path, "debug", good, bad)
    assert failures == {"bad seed 0": "exit status 1: error: data.train: no such file"}
    assert good.is_finished()


@pytest.mark.slow
@pytest.mark.usefixtures("train_script")
def test_a_job_that_was_left_behind_is_waited_for_and_not_doubled(tmp_path: Path, scheduler: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm", behaviour="sleeps")

    async def two_commands() -> list[str | None]:
        return await asyncio.gather(*(runner(tmp_path, "slurm")(run) for _ in range(2)))

    assert asyncio.run(two_commands()) == [None, None]
    assert len([*(scheduler / "jobs").iterdir()]) == 1 and (run.folder / "attempts").read_text() == "x"


@pytest.mark.slow
@pytest.mark.usefixtures("train_script")
def test_stopping_cancels_the_jobs(tmp_path: Path, scheduler: Path) -> None:
    run, on = stand_in.make_run(tmp_path, "arm", behaviour="hangs"), runner(tmp_path, "slurm")

    async def stop_it() -> None:
        task = asyncio.ensure_future(on(run))
        while not (run.folder / "started").exists():
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stop_it())
    deadline = time.monotonic() + 10
    while is_alive(int((scheduler / "jobs" / "1").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_is_told_its_time_is_up_queues_the_same_run_again(tmp_path: Path) -> None:
    run = stand_in.make_run(tmp_path, "arm")
    job = slurm.TrainJob(LaunchConfig(), is_slurm=True)
    again = job.checkpoint(run)
    assert again.function == job and again.args == (run,)


@pytest.mark.usefixtures("scheduler")
def test_wrong_resources_are_refused_before_anything_is_queued(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slurm: Unknown executor 'gpu' in parameter 'gpu_per_node'"):
        runner(tmp_path, "slurm", gpu_per_node=1)
    with pytest.raises(ValueError, match='slurm: Parameter "gpus_per_node" expected type'):
        runner(tmp_path, "slurm", gpus_per_node="all")
    with pytest.raises(ValueError, match="slurm.timeout_min is not set"):
        slurm.ClusterRunner("slurm", tmp_path, LaunchConfig(), {})


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(ValueError, match="slurm: Could not detect"):
        runner(tmp_path, "slurm")
