"""Two processes on CPU, launched as one of the files of `launch/accelerate` says, but in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests import tiny


def run_two(kind: str, arguments: list[str], folder: Path) -> None:
    """Run a module or script in two processes; its failure fails the test.

    `accelerate launch` itself would start one process where there is no GPU.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=tiny.ROOT,
        env=environment(kind, folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-3000:]


def environment(kind: str, folder: Path) -> dict[str, str]:
    """What `accelerate launch` would set for `launch/accelerate/KIND.yaml`."""
    config = tiny.ROOT / "launch" / "accelerate" / f"{kind}.yaml"
    arguments = ["--num_processes=2", f"--config_file={config}", "train.py"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if kind.startswith("zero"):
        parsed.deepspeed_config_file = str(in_fp32(tiny.ROOT / parsed.deepspeed_config_file, folder))
        parsed.deepspeed_fields_from_accelerate_config = "deepspeed_config_file,zero3_init_flag"
        return {**prepare_deepspeed_cmd_env(parsed)[1], "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if kind == "multi_gpu" else {}
    return {**prepare_multi_gpu_env(parsed), **on_cpu, "ACCELERATE_MIXED_PRECISION": "no"}


def in_fp32(config_file: Path, folder: Path) -> Path:
    """A DeepSpeed config without what would hide a wrong gradient, or take a minute to compile."""
    config = json.loads(config_file.read_text())
    config["bf16"]["enabled"] = False
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = (
            0  # the tiny model's all are small
        )
    config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW on offloaded states
    path = folder / config_file.name
    path.write_text(json.dumps(config))
    return path


def allow_fsdp_on_cpu() -> None:
    """In a process: accelerate offers FSDP2 to those with GPUs only, while PyTorch runs it on CPUs as well."""
    if os.environ.get("ACCELERATE_USE_FSDP"):
        PartialState(backend="gloo")
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
