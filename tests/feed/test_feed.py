"""A process's prompts, step by step: seeds, shares between processes, and a feed that is made anew."""

from __future__ import annotations

from collections import Counter
from itertools import chain, zip_longest

from grpo.feed.mixture import parts
from grpo.feed.prompts import Feed, rollout_seed
from grpo.groups import Batch
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.media.sampling import MediaSettings
from tests.support import tiny

SIZES = {"ego": 7, "general": 30, "rest": 9}
MIXED = parts(
    [[tiny.sample(f"{name}{number}") for number in range(size)] for name, size in SIZES.items()],
    [0.5, 0.125, None],
)


def feed(rank: int = 0, num_processes: int = 1) -> Feed:
    return Feed(
        MIXED,
        ClipLoader(ClipReader(settings=MediaSettings()), cache_gib=0, num_workers=0, timeout_s=60),
        tiny.prompt,
        seed=3,
        prompts_per_step=8,
        max_prompt_tokens=10_000,
        prefetch_steps=1,
        rank=rank,
        num_processes=num_processes,
    )


def asked(batch: Batch) -> list[tuple[str, int]]:
    return [(prompt.sample.id, seed) for prompt, seed in zip(batch.prompts, batch.seeds, strict=True)]


def test_seeds_differ_by_step_and_slot_and_leave_room_for_a_group() -> None:
    seeds = {rollout_seed(0, step, slot) for step in range(50) for slot in range(50)}
    assert len(seeds) == 2500 and max(seeds) < 2**62


def test_a_question_has_other_seeds_in_each_step_and_each_attempt() -> None:
    batches = [
        feed().batch(1),
        feed().batch(2),
        feed().others(1, 1, [0, 1, 2]),
        feed().others(1, 2, [0, 1, 2]),
    ]
    seeds = [seed for batch in batches for seed in batch.seeds]
    assert len(seeds) == 8 + 8 + 3 + 3 and len(set(seeds)) == len(seeds)
    assert feed().batch(2).seeds == batches[1].seeds


def test_processes_share_what_one_would_have_of_a_mixture() -> None:
    one, halves = feed(), (feed(0, 2), feed(1, 2))
    kinds = Counter()
    for step in range(1, 9):
        whole, (first, second) = asked(one.batch(step)), (asked(half.batch(step)) for half in halves)
        assert [*chain(*zip_longest(first, second))] == whole  # places go round the processes
        kinds.update(name.rstrip("0123456789") for name, _ in whole)
    assert kinds == {"ego": 32, "general": 8, "rest": 24}  # of 64


def test_a_feed_that_is_made_anew_goes_on_where_the_other_stopped() -> None:
    whole, resumed = feed(1, 2), feed(1, 2)
    batches = [asked(whole.batch(step)) for step in range(1, 9)]
    assert [asked(resumed.batch(step)) for step in range(5, 9)] == batches[4:]
    assert asked(resumed.batch(2)) == batches[1]
