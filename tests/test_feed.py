"""Seeds of rollouts."""

from grpo.feed import rollout_seed


def test_seeds_differ_by_step_and_slot_and_leave_room_for_a_group() -> None:
    seeds = {rollout_seed(0, step, slot) for step in range(50) for slot in range(50)}
    assert len(seeds) == 2500 and max(seeds) < 2**62
