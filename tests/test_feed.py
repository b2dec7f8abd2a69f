"""Which samples a step trains on."""

from grpo.feed import rollout_seed, step_indices


def test_every_sample_comes_once_per_epoch_in_a_new_order() -> None:
    steps = [step_indices(10, 4, step, seed=0) for step in range(1, 6)]  # 20 places: two epochs
    flat = [index for step in steps for index in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_a_step_depends_on_the_seed_and_not_on_earlier_calls() -> None:
    assert step_indices(100, 8, 7, seed=1) == step_indices(100, 8, 7, seed=1)
    assert step_indices(100, 8, 7, seed=1) != step_indices(100, 8, 7, seed=2)


def test_more_prompts_than_samples_go_round() -> None:
    assert sorted(step_indices(3, 6, 1, seed=0)) == [0, 0, 1, 1, 2, 2]


def test_seeds_differ_by_step_and_slot_and_leave_room_for_a_group() -> None:
    seeds = {rollout_seed(0, step, slot) for step in range(50) for slot in range(50)}
    assert len(seeds) == 2500 and max(seeds) < 2**62
