"""launch/slurm/train.sbatch with stand-ins for SLURM's commands: what each node is asked to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.support import tiny

STAND_INS = {
    "scontrol": "printf 'node7\\nnode8\\n'",
    "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; ("$@"); done',
    "accelerate": 'printf "%s\\n" "$*"',
}


@pytest.mark.parametrize("launch", ["zero3", "fsdp2"])
def test_every_node_starts_its_processes_of_one_run(launch: str, tmp_path: Path) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text("")
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "12345",
    }
    done = subprocess.run(
        ["bash", str(tiny.ROOT / "launch" / "slurm" / "train.sbatch"), "a.yaml", "optim.lr=1e-6"],
        cwd=tmp_path,
        env={**os.environ, **job, "LAUNCH": launch, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    for rank, line in enumerate(done.stdout.splitlines()):
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
