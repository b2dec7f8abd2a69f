"""launch/slurm/train.sbatch with stand-ins for SLURM's commands: what each node is asked to run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from grpo.config.schema import CheckpointConfig
from tests.support import tiny
from tests.support.processes import wait_until

STAND_INS = {
    "scontrol": """if [[ $1 == show ]]; then printf 'node7\\nnode8\\n'; else echo "$@" >> asked; fi""",
    "scancel": 'echo "$@" >> asked; touch told',
    "squeue": "echo RUNNING",
    "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; ("$@"); done',
    "accelerate": 'printf "%s\\n" "$*"',
}


def submit(tmp_path: Path, stand_ins: dict[str, str], **environment: str) -> subprocess.Popen[str]:
    """The script as a job of two nodes runs it."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text("")
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "12345",
    }
    return subprocess.Popen(
        ["bash", str(tiny.ROOT / "launch" / "slurm" / "train.sbatch"), "a.yaml", "optim.lr=1e-6"],
        cwd=tmp_path,
        env={**os.environ, **job, **environment, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("launch", ["zero3", "fsdp2"])
def test_every_node_starts_its_processes_of_one_run(launch: str, tmp_path: Path) -> None:
    job = submit(tmp_path, STAND_INS, LAUNCH=launch)
    said, _ = job.communicate()
    assert job.returncode == 0 and not (tmp_path / "asked").exists()
    for rank, line in enumerate(said.splitlines()):
        command, *arguments = line.replace(
            "launch/accelerate", str(tiny.ROOT / "launch" / "accelerate")
        ).split()
        parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
        assert command == "launch" and parsed.machine_rank == rank
        assert (parsed.num_machines, parsed.num_processes, parsed.main_process_ip) == (2, 16, "node7")
        assert parsed.main_process_port == 22345
        assert parsed.use_deepspeed == (launch == "zero3") and parsed.use_fsdp == (launch == "fsdp2")
        assert parsed.deepspeed_multinode_launcher in (None, "standard")
        assert parsed.training_script == "grpo/train.py"
        assert parsed.training_script_args == ["a.yaml", "optim.lr=1e-6"]
    assert rank == 1


SAVES = "touch started; until [[ -e told ]]; do sleep 0.05; done; sleep 0.4; echo saved >> asked; exit 1"
TELLS = "--signal TERM 12345"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_told_to_end_lets_the_run_save_and_goes_back_to_the_queue(
    number: signal.Signals, tmp_path: Path
) -> None:
    job = submit(tmp_path, {**STAND_INS, "srun": SAVES})
    wait_until((tmp_path / "started").exists)
    job.send_signal(number)
    wait_until((tmp_path / "told").exists)
    job.send_signal(signal.SIGTERM)  # SLURM may send both
    job.wait()
    assert (tmp_path / "asked").read_text().splitlines() == [TELLS, "saved", "requeue 12345"]


def test_a_job_that_is_cancelled_lets_the_run_save_and_is_not_queued_again(tmp_path: Path) -> None:
    job = submit(tmp_path, {**STAND_INS, "srun": SAVES, "squeue": "echo COMPLETING"})
    wait_until((tmp_path / "started").exists)
    job.send_signal(signal.SIGTERM)
    job.wait()
    assert (tmp_path / "asked").read_text().splitlines() == [TELLS, "saved"]


def test_a_run_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = submit(tmp_path, {**STAND_INS, "srun": "exit 3"})
    assert job.wait() == 3 and not (tmp_path / "asked").exists()


def test_the_signal_comes_before_the_run_gives_up() -> None:
    script = (tiny.ROOT / "launch" / "slurm" / "train.sbatch").read_text()
    early_s = int(re.findall(r"^#SBATCH --signal B:USR1@(\d+)$", script, re.MULTILINE)[0])
    launcher_s = int(re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", script)[0])
    assert CheckpointConfig().stop_within_s < launcher_s < early_s
