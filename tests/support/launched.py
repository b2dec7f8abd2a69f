"""Several processes on CPU, mostly two, launched as one of the files of `launch/accelerate` says, for tiny models."""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.support import tiny


def run_two(kind: str, arguments: list[str], folder: Path, *, processes: int = 2) -> None:
    """Run a module or script in two processes, or in more; its failure fails the test."""
    run_in_two(arguments, environment(kind, folder), folder, processes=processes)


def run_in_two(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    timeout_s: float = 300.0,
    *,
    processes: int = 2,
) -> None:
    """What torchrun does, by forks of a process that has imported everything: a fresh one would do so for ten seconds.

    `accelerate launch` itself would start one process where there is no GPU.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    world = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    logs = [folder / f"process_{rank}.log" for rank in range(processes)]
    started = [
        context.Process(
            target=be_one,
            args=(
                arguments,
                {**environment, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                str(logs[rank]),
            ),
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    _join(started, timeout_s)
    said = "".join(
        f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}\n" for log in logs if log.exists()
    )
    assert [process.exitcode for process in started] == [0] * processes, said


def _join(processes: Sequence[BaseProcess], timeout_s: float) -> None:
    """Where one fails, the other would wait for it for ever."""
    give_up_at = time.monotonic() + timeout_s
    while any(each.exitcode is None for each in processes) and time.monotonic() < give_up_at:
        if any(each.exitcode for each in processes):
            give_up_at = min(give_up_at, time.monotonic() + 10.0)
        wait([each.sentinel for each in processes if each.exitcode is None], timeout=1.0)
    for process in processes:
        process.kill()
        process.join()


def be_one(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """The life of a process that has just been forked."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # The streams of before know another file: whether it can be searched, and whether it is a terminal.
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, closefd=False)  # noqa: SIM115 (they are open to the end)
        for number in (1, 2)
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(tiny.ROOT)
    is_module, sys.argv = arguments[0] == "-m", arguments[arguments[0] == "-m" :]
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def environment(kind: str, folder: Path) -> dict[str, str]:
    """What `accelerate launch` would set for `launch/accelerate/KIND.yaml`."""
    config = tiny.ROOT / "launch" / "accelerate" / f"{kind}.yaml"
    arguments = ["--num_processes=2", f"--config_file={config}", "train.py"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if kind.startswith("zero"):
        parsed.deepspeed_config_file = str(for_tiny_models(tiny.ROOT / parsed.deepspeed_config_file, folder))
        parsed.deepspeed_fields_from_accelerate_config = "deepspeed_config_file,zero3_init_flag"
        return {**prepare_deepspeed_cmd_env(parsed)[1], "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    return {**prepare_multi_gpu_env(parsed), "ACCELERATE_MIXED_PRECISION": "no"}


def for_tiny_models(config_file: Path, folder: Path) -> Path:
    """A DeepSpeed config without what would hide that weights are split, or take a minute to compile."""
    config = json.loads(config_file.read_text())
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
