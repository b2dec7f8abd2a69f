"""vLLM in two processes that a launcher started: an engine each, or one for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, prompts, tokens
from tests.support import tiny
from tests.support.launched import run_two

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def alone() -> list[list[tuple[int, ...]]]:
    """The completions of one process with an engine of its own."""
    from tests.support.engines import vllm_engine

    engine = vllm_engine(tiny.policy(temperature=TEMPERATURE))
    found = tokens(engine.generate(prompts(), SAMPLING, SEEDS))
    engine.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_two_processes_sample_what_one_does_and_prove_a_sync(
    tensor_parallel_size: int, alone: list[list[tuple[int, ...]]], tmp_path: Path
) -> None:
    # What processes that were killed have left: vLLM gives it the same name in every run.
    for file in Path("/dev/shm").glob("-tp:0-*-cpushm_*"):
        file.unlink()
    out = tmp_path / "found"
    run_two("multi_gpu", ["-m", "tests.support.engine_worker", str(tensor_parallel_size), str(out)], tmp_path)
    first, second = (torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2))
    found: list[dict[str, Any]] = [first, second]
    assert first["tokens"] + second["tokens"] == alone
    assert first["moved"] != first["tokens"]
    assert [each["told"] for each in found] == [[4] * 4, [4] * 2] and [each["few"] for each in found] == [
        1,
        0,
    ]
    assert max(max(each["gaps"]) for each in found) < 1e-3
    # Of a layer that is split over processes only sums are compared.
    named = {"model.language_model.layers.1.self_attn.k_proj.weight"}
    for each in found:
        assert (
            named
            <= set(each["differing"])
            <= named | {f"model.language_model.layers.1.self_attn.{other}_proj.weight" for other in "qv"}
        )
