"""Which samples a step trains on: each once per epoch, and from each dataset exactly its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.load import load_config
from grpo.feed.mixture import parts, step_indices, step_samples
from tests.config.test_config import DEMO
from tests.support import pages, tiny


def test_every_sample_comes_once_per_epoch_in_a_new_order() -> None:
    steps = [step_indices((10,), (1,), 4, step, seed=0) for step in range(1, 6)]  # 20 places: two epochs
    flat = [index for step in steps for _, index in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_a_step_depends_on_the_seed_and_not_on_earlier_calls() -> None:
    for sizes, weights in (((100,), (1,)), ((60, 40), (1, 9))):
        assert step_indices(sizes, weights, 8, 7, 1) == step_indices(sizes, weights, 8, 7, 1)
        assert step_indices(sizes, weights, 8, 7, 1) != step_indices(sizes, weights, 8, 7, 2)


def test_more_prompts_than_samples_go_round() -> None:
    assert sorted(step_indices((3,), (1,), 6, 1, seed=0)) == [(0, i) for i in (0, 0, 1, 1, 2, 2)]


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(1, 9))
def test_at_every_step_each_part_has_had_its_share_up_to_rounding(weights: list[int], prompts: int) -> None:
    sizes = tuple(range(3, 3 + len(weights)))
    total, counts = sum(weights), Counter()
    for step in range(1, 2 * total // prompts + 2):
        counts.update(part for part, _ in step_indices(sizes, tuple(weights), prompts, step, seed=0))
        for part, weight in enumerate(weights):
            assert abs(counts[part] - step * prompts * weight / total) < 1


def test_a_part_is_gone_through_epoch_after_epoch_at_its_own_pace() -> None:
    picked = [each for step in range(1, 101) for each in step_indices((7, 30), (1, 9), 8, step, seed=3)]
    for part, size, expected in ((0, 7, 80), (1, 30, 720)):
        own = [index for whose, index in picked if whose == part]
        assert len(own) == expected
        counts = Counter(own)
        assert set(counts) == set(range(size)) and max(counts.values()) - min(counts.values()) <= 1


def test_processes_see_all_parts() -> None:
    """Two halves alternate: without the shuffle inside a step, slots 0, 2, 4, ... would all be of one part."""
    steps = [step_indices((9, 9), (1, 1), 8, step, seed=0) for step in range(1, 51)]
    firsts = Counter(part for step in steps for part, _ in step[::2])
    assert firsts.keys() == {0, 1} and min(firsts.values()) > 70  # of 200


def test_sets_without_a_share_are_one_part_with_the_rest() -> None:
    ego, general, more = ([tiny.sample(f"{name}{i}") for i in range(size)] for name, size in
                          (("ego", 4), ("general", 50), ("more", 6)))  # fmt: skip
    mixed = parts([ego, general, more], [None, 0.1, None])
    assert [(len(part.samples), part.weight) for part in mixed] == [(50, 1), (10, 9)]
    names = [sample.id for step in range(1, 11) for sample in step_samples(mixed, 10, step, seed=0)]
    # Ten of a hundred; the other ninety are nine epochs of the ten.
    assert sum(name.startswith("general") for name in names) == 10
    assert all(names.count(sample.id) == 9 for sample in [*ego, *more])
    alone = parts([ego, more], [None, None])
    assert [(len(part.samples), part.weight) for part in alone] == [(10, 1)]


def test_a_part_of_one_set_keeps_the_order_that_plain_data_has() -> None:
    plain = [index for _, index in step_indices((20,), (1,), 20, 1, seed=5)]
    mixed = [index for part, index in step_indices((20, 5), (4, 1), 25, 1, seed=5) if part == 0]
    assert sorted(mixed) == sorted(plain)


def shared(shares: Sequence[float | None]) -> str:
    """The override for training sets with these shares."""
    sets = [f"{{path: x, share: {'null' if share is None else share}}}" for share in shares]
    return f"data.train=[{', '.join(sets)}]"


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.4], "every set has a share, and they sum up to 0.9, not 1"),
        ([0.5, 0.5, None], "leave nothing to the sets without one"),
        ([0.0, None], r"data.train.0.share must be at least 0.0001, not 0"),
        ([None, 1.5], "data.train.1.share"),
        ([float("nan"), None], "data.train.0.share"),
    ],
)
def test_shares_that_no_mixture_has_are_refused(shares: list[float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config([DEMO, shared(shares)])


def test_thirds_are_close_enough() -> None:
    load_config([DEMO, shared([0.333, 0.333, 0.333])])
    assert [part.weight for part in parts([[tiny.sample(n)] for n in "abc"], [0.333] * 3)] == [1, 1, 1]


def test_a_share_belongs_to_training() -> None:
    load_config([DEMO, "data.train=[{path: a}, {path: b, share: 0.1}]"])
    with pytest.raises(ValueError, match="data.eval: only training sets have a share"):
        load_config([DEMO, "data.eval=[{path: b, share: 0.1}]"])
    with pytest.raises(ValueError, match="leave nothing"):
        load_config([DEMO, "data.train=[{path: a}, {path: b, share: 1}]"])


def test_the_places_of_steps_follow_each_other() -> None:
    one = [each for step in range(1, 13) for each in step_indices((5, 8), (2, 3), 5, step, seed=0)]
    other = [each for step in range(1, 4) for each in step_indices((5, 8), (2, 3), 20, step, seed=0)]
    for until in accumulate([20, 20, 20]):
        assert Counter(one[:until]) == Counter(other[:until])


def test_the_documentations_mixture_is_one(tmp_path: Path) -> None:
    blocks = pages.blocks(tiny.ROOT / "docs" / "own_data.md", "yaml")
    (tmp_path / "mix.yaml").write_text(next(block.text for block in blocks if "share:" in block.text))
    config = load_config([DEMO, str(tmp_path / "mix.yaml")])
    sets = [[tiny.sample("ego")], [tiny.sample("general")]]
    mixed = parts(sets, [dataset.share for dataset in config.data.train])
    assert [(part.samples[0].id, part.weight) for part in mixed] == [("general", 1), ("ego", 9)]
