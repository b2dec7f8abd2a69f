"""What accelerate is told before any process starts to wait for another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from grpo.config.learner import OptimConfig, RobustConfig
from grpo.learner import launching, optimizers
from grpo.learner.optimizers import make_optimizer


@pytest.mark.parametrize("on_gpu", [False, True])
def test_processes_wait_for_hours_and_ddp_has_no_second_copy_of_gradients(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(launching, "Accelerator", lambda **options: given.update(options))
    launching.make_accelerator()
    (groups,) = [each for each in given["kwargs_handlers"] if isinstance(each, InitProcessGroupKwargs)]
    (ddp,) = [each for each in given["kwargs_handlers"] if isinstance(each, DistributedDataParallelKwargs)]
    assert groups.timeout is not None and groups.timeout >= timedelta(hours=2)
    assert groups.backend == ("nccl" if on_gpu else "gloo")
    assert given["mixed_precision"] == ("bf16" if on_gpu else "no")
    assert ddp.gradient_as_bucket_view


@pytest.mark.parametrize("method", ["none", "spd", "l2_sp"])
def test_on_a_gpu_adamw_is_the_fused_one_which_makes_the_same_steps(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for on_gpu in (False, True):
        monkeypatch.setattr(optimizers, "on_gpu", lambda is_so=on_gpu: is_so)
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(7, 5))
        robust = RobustConfig(method=method, strength=0.5 if method != "none" else 0.0)
        optimizer = make_optimizer([weight], OptimConfig(lr=0.1, robust=robust), from_zero=False)
        assert optimizer.defaults["fused"] == (True if on_gpu else None)
        for _ in range(3):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        steps.append(weight.detach().clone())
    torch.testing.assert_close(*steps, atol=1e-5, rtol=1e-5)
