"""The shipped accelerate and DeepSpeed configs are read by the real libraries, and train right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]
ACCELERATE_CONFIGS = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
DEEPSPEED_CONFIGS = sorted((ROOT / "launch" / "deepspeed").glob("*.json"))


def test_the_configs_that_the_documentation_names_are_there():
    assert {path.stem for path in ACCELERATE_CONFIGS} >= {
        "single", "multi_gpu", "fsdp2", "zero2", "zero2_offload", "zero3", "zero3_offload",
    }  # fmt: skip
    assert {path.stem for path in DEEPSPEED_CONFIGS} == {
        "zero2", "zero2_offload", "zero3", "zero3_offload",
    }  # fmt: skip


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.stem)
def test_accelerate_launch_takes_the_config_without_warnings(path, caplog):
    arguments = ["--config_file", str(path), "train.py"]
    if path.stem != "single":
        arguments = ["--num_processes", "2", *arguments]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert arguments.num_machines == 1
    assert arguments.mixed_precision == ("bf16" if path.stem in ("multi_gpu", "fsdp2") else "no")
    assert not caplog.records


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.stem)
def test_every_process_but_the_single_one_has_to_be_asked_for(path):
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    if path.stem == "single":
        assert _validate_launch_command(arguments)[0].num_processes == 1
    else:
        with pytest.raises(ValueError, match="num_processes"):
            _validate_launch_command(arguments)


@pytest.mark.parametrize(
    ("name", "stage"), [("zero2", 2), ("zero2_offload", 2), ("zero3", 3), ("zero3_offload", 3)]
)
def test_accelerate_reads_the_deepspeed_config_that_its_own_names(name, stage, monkeypatch):
    from accelerate.utils import DeepSpeedPlugin

    config = load_config_from_file(str(ROOT / "launch" / "accelerate" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    settings = config.deepspeed_config or {}
    # As `accelerate launch` tells the processes: it refuses a field that the JSON has as well.
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", ",".join(settings))
    plugin = DeepSpeedPlugin(
        hf_ds_config=str(ROOT / settings["deepspeed_config_file"]),
        zero3_init_flag=settings["zero3_init_flag"],
    )
    assert plugin.zero_stage == stage
    assert plugin.deepspeed_config["bf16"]["enabled"] is True
    # The trainer replaces "auto" by its own setting.
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"


@pytest.mark.parametrize("path", DEEPSPEED_CONFIGS, ids=lambda path: path.stem)
def test_the_trainer_alone_accumulates(path):
    config = json.loads(path.read_text())
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_two_processes_sum_the_gradients_of_their_rows_in_fp32(name):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tests" / "support" / "deepspeed_worker.py")]
    command.append(str(ROOT / "launch" / "deepspeed" / f"{name}.json"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
