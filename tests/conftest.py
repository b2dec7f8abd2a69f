"""The environment of every test and of every process that a test starts; skips what needs a GPU.

It is set before torch or vllm is imported, and what is set outside wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a wrong path fails at once instead of asking the network for 30 s
    "OMP_NUM_THREADS": "1",  # small models on shared cores: two threads were 10 to 60 times slower
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    # vLLM in the test's own process, small, and off torch's threads.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def each_family(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once for each model family, whose tiny model is that of `tests.support.tiny` meanwhile."""
    from tests.support import tiny

    with tiny.of_family(request.param):
        yield request.param


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve training and four held-out clips of the demo; not to be written to."""
    from grpo.demo.clips import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=12, num_heldout=4, seed=1)
