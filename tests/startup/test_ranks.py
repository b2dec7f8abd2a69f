"""What launchers leave in the environment."""

from __future__ import annotations

import pytest

from grpo.startup.ranks import launched_rank

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


def test_a_process_knows_its_place() -> None:
    assert launched_rank(LAUNCHED) == 3
    assert launched_rank({}) == 0
    # As a cluster's pod with one process has it.
    assert launched_rank({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "pod", "MASTER_PORT": "23456"}) == 0
    assert launched_rank({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == 0


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"RANK": "3"}, "RANK=3 without WORLD_SIZE, LOCAL_RANK"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= without RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8 without RANK, LOCAL_RANK"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 without RANK"),
        ({"RANK": ""}, "RANK= without RANK"),
        (LAUNCHED | {"MASTER_ADDR": ""}, "without MASTER_ADDR"),
        (LAUNCHED | {"RANK": "8"}, "RANK=8 WORLD_SIZE=8 .* is no place among processes"),
        (LAUNCHED | {"LOCAL_RANK": "x"}, "is no place among processes"),
    ],
)
def test_what_cannot_be_meant_is_one_line(left: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=f"environment: .*{words}.*unset them if another launcher") as caught:
        launched_rank(left)
    assert "\n" not in str(caught.value)
