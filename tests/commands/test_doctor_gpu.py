"""The doctor of a machine: one table and one verdict, and what it leaves out where there is no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from grpo.commands.doctor import command, gpu
from grpo.commands.doctor.gpu import Row, as_table, checked


@pytest.mark.slow
def test_without_a_gpu_what_can_run_is_run_and_the_rest_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--gpu"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert "left out" in rows["GPUs"] and "left out" in rows["memory"]
    assert f"torch {torch.__version__.split('+')[0]}" in rows["versions"]
    assert "2 over gloo have the same sum" in rows["processes"]
    assert "3 steps with" in rows["demo"] and " ok " in rows["demo"]
    assert shown.splitlines()[-1].startswith(
        "no GPU here: what runs without one is in order (left out: GPUs, "
    )


def test_a_check_that_raises_is_a_line_of_the_table_and_the_verdict() -> None:
    def fails() -> Any:
        raise RuntimeError("Traceback ...\n  ...\nNCCL error: unhandled system error")

    rows = [checked("processes", fails), Row("demo", "ok", "3 steps"), Row("memory", "left out", "no GPU")]
    assert rows[0][:3] == ("processes", "FAILED", "NCCL error: unhandled system error")
    lines = as_table(rows).splitlines()
    assert lines[-1] == "NOT ready: processes (left out: memory)"


def test_a_package_that_is_installed_and_does_not_load_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if name == "deepspeed":
            raise ImportError("undefined symbol: _ZN3c10\nmore")

    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == "bitsandbytes" else True)
    monkeypatch.setattr(gpu, "import_module", load)
    assert gpu.packages() == (
        "FAILED",
        "vllm loads, deepspeed does not load (undefined symbol: _ZN3c10), bitsandbytes is not installed",
    )


def test_a_driver_whose_gpu_torch_does_not_see_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert gpu.gpus()[0] == "FAILED"


def gpus_of(monkeypatch: pytest.MonkeyPatch, free_gib: list[int], *, total_gib: int = 80) -> None:
    """Stands in for GPUs with so much free memory each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free_gib))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda index: (free_gib[index] * 2**30, total_gib * 2**30)
    )


def test_gpus_that_others_use_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_of(monkeypatch, [79, 39])
    status, found = gpu.memory()
    assert status == "FAILED" and found.startswith("GiB free: 79 of 80, 39 of 80; ")
    assert found.endswith("; somebody else is on them")


def test_what_the_demo_takes_stands_beside_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_of(monkeypatch, [79])
    status, found = gpu.memory()
    # 0.3 of 80 GiB for vLLM, 2 for CUDA, and a learner of 1.1 M weights.
    expected = float(re.findall(r"expected to take ([0-9.]+)", found)[0])
    assert status == "ok" and 26 < expected < 28
    # vLLM does not start in so little: the learner's context leaves less than its share.
    gpus_of(monkeypatch, [2], total_gib=2)
    assert gpu.memory()[0] == "FAILED"


def test_without_vllm_a_machine_with_a_gpu_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    assert gpu.packages()[0] == "ok"
    gpus_of(monkeypatch, [79])
    row = checked("packages", gpu.packages)
    assert row.status == "FAILED" and row.found.startswith("vllm is not installed (launch/install.sh), ")
    assert as_table([row, Row("demo", "ok", "3 steps")]).splitlines()[-1] == "NOT ready: packages"


def test_each_row_has_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "perf_counter", iter([10.0, 12.5]).__next__)
    row = checked("versions", gpu.versions)
    assert row.seconds == 2.5 and "  2.5 s  torch" in as_table([row])


def test_without_a_config_the_doctor_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([])
    assert "name a config, or --gpu" in capsys.readouterr().err
