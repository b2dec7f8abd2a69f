"""Completions that are finished over several steps: which weights their tokens are of, and when they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo.groups import Batch, Group, Prompt, Rollout
from grpo.rollout import OnGroup, Sampling, as_rollout
from grpo.rollout.partial import PartialRollouts
from grpo.run.rollout_files import VERSIONS, read_columns
from grpo.startup import assembly
from tests.support import beside, runs, tiny

END = 99
LENGTHS = {"short": (2, 3), "long": (2, 8), "longest": (2, 14)}
"""How many tokens the two completions of a question have, their end included."""
SAMPLING = Sampling(group_size=2, max_new_tokens=16, temperature=1.0)


class Scripted:
    """An engine whose completions count up to their end, wherever they are cut."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.is_lost = False

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        groups = []
        for prompt in prompts:
            begun, lengths = len(prompt.token_ids) - NUM_TOKENS, LENGTHS[prompt.sample.id]
            self.asked.append((prompt.sample.id, begun, sampling.max_new_tokens))
            if begun and self.is_lost:
                continue
            lengths = lengths[-sampling.group_size :]
            rollouts = tuple(completion(prompt, begun, length, sampling.max_new_tokens) for length in lengths)
            groups.append(Group(prompt=prompt, rollouts=rollouts))
            if on_group is not None:
                on_group(groups[-1])
        return groups

    def sync(self) -> None: ...
    def sleep(self) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def completion(prompt: Prompt, begun: int, length: int, limit: int) -> Rollout:
    tokens = [*range(length - 1), END][begun : begun + limit]
    logprobs = [-token / 100 for token in tokens]
    return as_rollout(
        prompt, text=str(tokens), token_ids=tokens, logprobs=logprobs, stopped=tokens[-1] == END
    )


PROMPTS = {name: tiny.prompt(tiny.sample(name), None) for name in LENGTHS}
NUM_TOKENS = len(PROMPTS["short"].token_ids)


def batch(*names: str) -> Batch:
    """Questions of a step; those of one name have one prompt each."""
    places = tuple(range(len(names)))
    prompts = tuple(PROMPTS[name] for name in names)
    return Batch(prompts=prompts, seeds=places, places=places, lost=())


def partial(max_steps: int = 2) -> PartialRollouts:
    return PartialRollouts(sampling=SAMPLING, decode=str, max_tokens=4, max_steps=max_steps)


def trained(rollouts: PartialRollouts, engine: Scripted, step: int, *names: str) -> dict[str, Rollout]:
    """The longer completion of each group that a step trains on."""
    asked, groups = rollouts.sample(
        engine, batch(*names), step, step - 1, on_group=lambda _: None, on_first=lambda _: None
    )
    assert [prompt.sample.id for prompt in asked.prompts] == [group.prompt.sample.id for group in groups]
    return {group.prompt.sample.id: group.rollouts[-1] for group in groups}


def test_a_group_is_trained_on_when_its_last_completion_has_ended() -> None:
    rollouts, engine = partial(), Scripted()
    assert {*trained(rollouts, engine, 1, "long", "short", "longest")} == {"short"}
    assert [(each.group.prompt.sample.id, each.step, each.place) for each in rollouts.begun] == [
        ("long", 1, 0), ("longest", 1, 2),
    ]  # fmt: skip
    found = trained(rollouts, engine, 2, "short")
    assert {*found} == {"long", "short"}
    assert found["long"].token_ids == (*range(7), END) and found["long"].stopped
    assert found["long"].versions == (0,) * 4 + (1,) * 4 and found["short"].versions == (1,) * 3
    assert found["long"].logprobs == pytest.approx([*(-token / 100 for token in range(7)), -END / 100])
    assert found["long"].text == str(found["long"].token_ids)
    # Only what has not ended is asked for again.
    assert engine.asked[3:] == [("long", 4, 4), ("longest", 4, 4), ("short", 0, 4)]


def test_a_group_that_has_waited_for_long_is_finished_at_once() -> None:
    for max_steps, versions in ((1, (0,) * 4 + (1,) * 10), (2, (0,) * 4 + (1,) * 4 + (2,) * 6)):
        rollouts, engine = partial(max_steps), Scripted()
        trained(rollouts, engine, 1, "longest")
        for step in range(2, max_steps + 1):
            assert trained(rollouts, engine, step) == {} and rollouts.num_finished_at_once == 0
        last = trained(rollouts, engine, max_steps + 1)["longest"]
        assert rollouts.num_finished_at_once == 1 and rollouts.begun == []
        assert (last.token_ids, last.versions) == ((*range(13), END), versions)


def test_a_completion_at_the_limit_of_its_tokens_is_complete_without_an_end() -> None:
    LENGTHS["short"] = (2, 30)
    try:
        rollouts, engine = partial(9), Scripted()
        for step in (1, 2, 3):
            assert trained(rollouts, engine, step, *["short"] * (step == 1)) == {}
        found = trained(rollouts, engine, 4)["short"]
    finally:
        LENGTHS["short"] = (2, 3)
    assert found.token_ids == tuple(range(16)) and not found.stopped


def test_a_group_of_which_a_part_is_lost_is_lost() -> None:
    rollouts, engine = partial(), Scripted()
    trained(rollouts, engine, 1, "long")
    engine.is_lost = True
    left, groups = rollouts.sample(
        engine, batch("short"), 2, 1, on_group=lambda _: None, on_first=lambda _: None
    )
    assert [lost.sample_id for lost in left.lost] == ["long"] and len(groups) == 1 and rollouts.begun == []


def test_whole_groups_are_told_of_and_of_the_first_what_there_is() -> None:
    told: list[Group] = []
    first: list[Group] = []
    partial().sample(Scripted(), batch("long", "short"), 1, 0, on_group=told.append, on_first=first.append)
    assert [group.prompt.sample.id for group in told] == ["short"]
    assert [len(rollout.token_ids) for rollout in first[0].rollouts] == [2, 4]


RUN = (
    *beside.OVERRIDES, "optim.schedule=constant", "optim.lr=1e-3", "rollout.partial_tokens=8",
    "eval.every_steps=0",
)  # fmt: skip


def test_a_run_with_partial_rollouts_goes_on_as_if_it_had_not_ended(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "build_engine", beside.engine_beside)
    whole = runs.run(tmp_path / "whole", clips, *RUN)
    runs.run(tmp_path / "run", clips, *RUN, "num_steps=2")
    assert runs.repeatable(runs.run(tmp_path / "run", clips, *RUN)) == runs.repeatable(whole)
    assert sum(row.get("groups/unfinished", 0) for row in whole) > 0
    versions = [
        each
        for step in (2, 3, 4)
        for each in read_columns(tmp_path / "run" / "rollouts" / f"step_{step:06d}.parquet", [VERSIONS])[
            VERSIONS
        ]
    ]
    assert any(len({*each}) > 1 for each in versions)
    assert all([*each] == sorted(each) for each in versions)


def test_the_tokens_of_all_parts_have_the_log_probs_of_the_weights(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without learning all weights are those of the learner."""
    monkeypatch.setattr(assembly, "build_engine", beside.engine_beside)
    still = ("optim.lr=1e-30", "num_steps=3", "checkpoint.every_steps=0")
    rows = runs.run(tmp_path / "run", clips, *RUN, *still)
    assert sum(row["groups/unfinished"] for row in rows if row["step"]) > 0
    assert all(row["sampler/gap_max"] < 1e-4 for row in rows if "sampler/gap_max" in row)
