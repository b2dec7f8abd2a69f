"""What a run starts its own server with, and the GPUs that it refuses."""

from __future__ import annotations

import pytest

from grpo.config.load import load_config
from grpo.startup.servers import check_process_gpus, own_flags
from tests.support import tiny

DEMO = str(tiny.ROOT / "configs" / "demo.yaml")


def test_a_runs_own_server_takes_the_share_of_a_gpu_that_is_set() -> None:
    config = load_config([DEMO, "rollout.engine=vllm_process", "rollout.gpu_memory_frac=0.8"])
    flags = own_flags(config, tiny.family(), on_gpu=True)
    assert flags.count("--gpu-memory-utilization") == 1
    assert flags[flags.index("--gpu-memory-utilization") + 1] == "0.8"
    assert "--gpu-memory-utilization" not in own_flags(config, tiny.family(), on_gpu=False)


@pytest.mark.parametrize(
    ("gpus", "visible", "num_learners", "fits"),
    [
        ("7", None, 7, True),
        ("6", None, 7, False),
        ("7", "0,1,2,3,4,5,6,7", 7, True),
        ("3", "2, 3", 2, False),
        ("3", "2,3", 1, True),
        ("0", "1", 1, True),
        ("0,1", "0", 1, False),
        ("GPU-a", "GPU-b,GPU-a", 2, False),
    ],
)
def test_a_gpu_of_a_learner_is_not_the_servers(
    gpus: str, visible: str | None, num_learners: int, fits: bool
) -> None:
    if fits:
        check_process_gpus(gpus, visible, num_learners=num_learners)
        return
    with pytest.raises(
        ValueError, match=f"rollout.process_gpus={gpus}: a learner is on {gpus.split(',')[0]}"
    ):
        check_process_gpus(gpus, visible, num_learners=num_learners)


def test_a_server_on_gpus_needs_one() -> None:
    with pytest.raises(ValueError, match="rollout.process_gpus: set the GPU"):
        check_process_gpus(None, None, num_learners=1)
