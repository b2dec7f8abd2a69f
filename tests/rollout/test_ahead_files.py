"""Groups that were sampled ahead, written by some processes and read by others: each is somebody's, with its seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.feed.dynamic_sampling import Sampled
from grpo.feed.mixture import Part
from grpo.feed.prompts import Feed, rollout_seed
from grpo.groups import Batch, Group, Prompt, Sample
from grpo.media.clip import Clip
from grpo.rollout import Sampling, ahead_files
from grpo.rollout.ahead import Ahead, of_version
from grpo.rollout.ahead_files import AheadFiles
from grpo.rollout.partial import Begun, PartialRollouts
from tests.support import tiny

NUM_QUESTIONS, STEP, OLDER, SEED = 8, 3, 2, 11
"""The questions of a step, the one that is sampled ahead, and the one whose groups wait."""


def never(step: int, on_first: object) -> Sampled:
    raise AssertionError("nothing is sampled here")


def files(rank: int, num_processes: int) -> AheadFiles:
    def render(sample: Sample, clips: Sequence[Clip]) -> Prompt:
        return tiny.prompt(sample, None)

    # No sample has a clip.
    loader: Any = SimpleNamespace(prefetch=lambda _: None)
    feed = Feed(
        [Part(samples=[tiny.sample(f"s{slot}") for slot in range(NUM_QUESTIONS)])],
        loader,
        render,
        seed=SEED,
        prompts_per_step=NUM_QUESTIONS,
        max_prompt_tokens=1000,
        prefetch_steps=0,
        rank=rank,
        num_processes=num_processes,
    )
    sampling = Sampling(group_size=2, max_new_tokens=9, temperature=1.0)
    partial = PartialRollouts(sampling=sampling, decode=str, max_tokens=4, max_steps=2)
    return AheadFiles(Ahead(never, is_on=True), feed, partial)


def group(name: str, slot: int, version: int) -> Group:
    """A group whose tokens say whose it is."""
    prompt = tiny.prompt(tiny.sample(name), None)
    return of_version(
        Group(prompt=prompt, rollouts=(tiny.rollout(prompt, [slot, 1], text="x"),) * 2), version
    )


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, num_processes: int, *, is_ahead: bool) -> None:
    """Write groups as so many processes do: each slot's one of the step, and of every third slot one that waits."""
    alone = [files(rank, num_processes) for rank in range(num_processes)]
    for each in alone:
        slots = [*range(each.feed.rank, NUM_QUESTIONS, num_processes)]
        groups = [group(f"s{slot}", slot, STEP - 1) for slot in slots]
        batch = Batch(
            prompts=tuple(one.prompt for one in groups),
            seeds=tuple(rollout_seed(SEED, STEP, slot) for slot in slots),
            places=tuple(range(len(slots))),
            lost=(),
        )
        sampled = Sampled(batch, groups, [tiny.table((0.0, 1.0))] * len(groups))
        assert each.partial is not None
        each.partial.begun = [
            Begun(
                group=group(f"w{slot}", slot, OLDER - 1),
                seed=rollout_seed(SEED, OLDER, slot),
                step=OLDER,
                place=place,
            )
            for place, slot in enumerate(slots)
            if slot % 3 == 0
        ]
        if is_ahead:
            each.ahead.begin(STEP, lambda sampled=sampled: sampled)
    # What each process gives to the exchange is what it gives when it is alone.
    given: list[list[list[Any]]] = []
    for each in alone[1:]:
        given.append([])
        monkeypatch.setattr(ahead_files, "gather_object", lambda own: given[-1].append(own) or own)
        each.write(folder)
    rounds = [[one for part in parts for one in part] for parts in zip(*given, strict=True)]
    monkeypatch.setattr(ahead_files, "gather_object", lambda own: own + rounds.pop(0) if rounds else own)
    alone[0].write(folder)
    assert not rounds
    for each in alone:
        each.ahead.close()


@pytest.mark.parametrize("is_ahead", [True, False])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_any_number_of_processes_goes_on_with_what_two_have_sampled(
    num_processes: int, is_ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ahead"
    written(monkeypatch, folder, 2, is_ahead=is_ahead)
    complete: dict[int, tuple[str, int]] = {}
    waiting: dict[int, tuple[str, int]] = {}
    for rank in range(num_processes):
        each = files(rank, num_processes)
        each.read(folder)
        found = each.ahead.wait()
        each.ahead.close()
        assert (found is not None) == is_ahead and each.partial is not None
        for begun in each.partial.begun:
            slot = rank + begun.place * num_processes
            assert begun.step == OLDER and begun.group.rollouts[0].token_ids == (slot, 1)
            assert begun.group.rollouts[0].versions == (OLDER - 1,) * 2
            waiting[slot] = begun.group.prompt.sample.id, begun.seed
        if found is None:
            continue
        step, sampled = found
        assert step == STEP and sampled.batch.lost == ()
        for place, seed, one in zip(sampled.batch.places, sampled.batch.seeds, sampled.groups, strict=True):
            slot = rank + place * num_processes
            assert one.rollouts[0].token_ids == (slot, 1)
            complete[slot] = one.prompt.sample.id, seed
    slots = range(NUM_QUESTIONS) if is_ahead else ()
    assert complete == {slot: (f"s{slot}", rollout_seed(SEED, STEP, slot)) for slot in slots}
    assert waiting == {slot: (f"w{slot}", rollout_seed(SEED, OLDER, slot)) for slot in (0, 3, 6)}


def test_nothing_is_written_where_nothing_is_ahead_and_nothing_waits(tmp_path: Path) -> None:
    alone = files(0, 1)
    alone.write(tmp_path / "ahead")
    assert not (tmp_path / "ahead").exists()
    alone.ahead.close()
