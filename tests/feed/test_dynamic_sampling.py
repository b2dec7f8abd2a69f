"""Groups without signal are replaced, and questions that are solved or hopeless are left out for a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from grpo.config.load import load_config
from grpo.config.schema import DynamicSamplingConfig
from grpo.feed.dynamic_sampling import DifficultyMemory, Sampled, means_of
from grpo.feed.mixture import Part
from grpo.feed.prompts import Feed
from grpo.groups import Batch, Group, LostSample, RewardFailure, RewardTable
from grpo.learner.advantages import score_groups
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.media.sampling import MediaSettings
from grpo.run.folder import read_rows
from rewards.hostile import make_group
from tests.config.test_config import DEMO
from tests.support import runs, tiny

ALWAYS = DynamicSamplingConfig(skip_epochs=1.0)


def table(*totals: float | None) -> RewardTable:
    return RewardTable(columns={"accuracy": totals}, parts={}, totals=totals, failures=())


def sampled(
    places: Sequence[int], tables: Sequence[RewardTable], name: str, lost: str | None = None
) -> Sampled:
    prompts = [tiny.prompt(tiny.sample(f"{name}{place}"), None) for place in places]
    batch = Batch(
        prompts=tuple(prompts),
        seeds=tuple(range(len(prompts))),
        places=tuple(places),
        lost=(LostSample(sample_id=lost, reason="gone"),) if lost else (),
    )
    groups = [Group(prompt=prompt, rollouts=()) for prompt in prompts]
    return Sampled(batch, groups, tables)


def flat_places(of: Sampled) -> list[int]:
    return of.flat_places([has_signal(each) for each in of.tables])


def has_signal(of: RewardTable, *, stopped: bool = True, **settings: Any) -> bool:
    """Whether a group with these totals has a signal."""
    group = make_group(["x"] * len(of.totals), tiny.sample())
    group = replace(group, rollouts=tuple(replace(each, stopped=stopped) for each in group.rollouts))
    (scored,) = score_groups([group], [of], scale="group_std", **settings)
    return scored.has_signal


def is_flat(of: RewardTable) -> bool:
    return flat_places(sampled([0], [of], "a")) == [0]


def ids(of: Sampled) -> list[str]:
    assert [group.prompt for group in of.groups] == [*of.batch.prompts]
    return [group.prompt.sample.id for group in of.groups]


def test_a_group_is_flat_if_no_two_totals_differ() -> None:
    assert is_flat(table(1.0, 1.0, None)) and is_flat(table(None, None)) and is_flat(table(0.5, None))
    assert not is_flat(table(1.0, 0.0, None))
    failure = RewardFailure(
        reward="judge",
        sample_id="s",
        rollout_index=0,
        completion="",
        kind="died",
        summary="down",
        traceback="",
    )
    assert not is_flat(replace(table(None, None), failures=(failure,)))  # it must be seen
    assert is_flat(replace(table(1.0, 1.0), failures=(failure,)))  # of a reward that is only watched


def test_what_is_replaced_is_what_teaches_nothing() -> None:
    assert not has_signal(table(0.1 + 0.2, 0.3)) and has_signal(table(0.0, 0.001))
    assert not has_signal(table(0.0, 0.001), min_std=0.01)
    assert not has_signal(table(0.0, 1.0), stopped=False, mask_truncated=True)


def test_others_take_the_places_of_flat_groups_if_they_have_a_signal() -> None:
    first = sampled([0, 1, 3, 4], [table(1, 0), table(1, 1), table(0, 0), table(None, 1)], "a", lost="a2")
    assert flat_places(first) == [1, 3, 4]
    others = sampled([1, 4], [table(0, 0), table(0, 1)], "b", lost="b3")
    both = first.with_others(others, but=flat_places(others))
    assert ids(both) == ["a0", "a1", "a3", "b4"] and flat_places(both) == [1, 3]
    assert both.tables[3] is others.tables[1] and both.batch.seeds == (0, 1, 2, 1)
    assert [each.sample_id for each in both.batch.lost] == ["a2", "b3"]


def test_the_memory_leaves_out_what_is_solved_or_hopeless_for_so_many_epochs() -> None:
    config = DynamicSamplingConfig(skip_epochs=0.5, solved_from=0.9, hopeless_to=0.1)
    memory = DifficultyMemory(config, steps_per_epoch=10)
    memory.record(3, {"solved": 0.95, "hopeless": 0.1, "open": 0.5})
    left_out = [memory.leaves_out(each, 4) for each in ("solved", "hopeless", "open", "new")]
    assert left_out == [True, True, False, False]
    assert memory.leaves_out("solved", 8) and not memory.leaves_out("solved", 9)
    assert memory.num_left_out(8) == 2 and memory.num_left_out(9) == 0
    other = DifficultyMemory(memory.config, steps_per_epoch=10)
    other.load_state_dict(memory.state_dict())
    assert other.leaves_out("hopeless", 8)


def test_a_groups_mean_ignores_abstentions() -> None:
    first = sampled([0, 1], [table(1.0, None, 0.0), table(None)], "a")
    assert means_of(first.groups, first.tables, "accuracy") == {"a0": 0.5}


ALL = [Part([tiny.sample(f"s{number}") for number in range(20)])]


def feed(
    memory: DifficultyMemory | None, *, rank: int = 0, num_processes: int = 1, parts: Sequence[Part] = ALL
) -> Feed:
    return Feed(
        parts,
        ClipLoader(ClipReader(settings=MediaSettings()), cache_gib=0, num_workers=0, timeout_s=60),
        tiny.prompt,
        seed=0,
        prompts_per_step=4,
        max_prompt_tokens=10_000,
        prefetch_steps=0,
        rank=rank,
        num_processes=num_processes,
        memory=memory,
    )


def asked(batch: Batch) -> list[str]:
    return [prompt.sample.id for prompt in batch.prompts]


def test_another_question_is_asked_in_the_place_of_one_that_is_left_out() -> None:
    plain = asked(feed(None).batch(1))
    memory = DifficultyMemory(ALWAYS, steps_per_epoch=5)
    assert asked(feed(memory).batch(1)) == plain
    memory.record(0, {plain[1]: 1.0})
    changed = asked(feed(memory).batch(1))
    assert changed[1] != plain[1] and [changed[0], *changed[2:]] == [plain[0], *plain[2:]]
    memory.record(0, dict.fromkeys((f"s{number}" for number in range(20)), 0.0))
    assert asked(feed(memory).batch(1)) == plain  # nothing else is left


def test_other_questions_depend_on_the_place_and_not_on_the_processes() -> None:
    one, half = feed(None), feed(None, rank=1, num_processes=2)
    assert asked(one.others(1, 1, [1, 3])) == asked(half.others(1, 1, [0, 1]))
    assert one.others(1, 1, [1, 3]).seeds == half.others(1, 1, [0, 1]).seeds
    assert one.others(1, 1, [1, 3]).places == (1, 3)
    assert len({tuple(asked(one.others(1, attempt, [0, 1, 2, 3]))) for attempt in (1, 2, 3)}) == 3


def test_other_questions_come_from_the_same_part_of_a_mixture() -> None:
    mixed = [Part([tiny.sample(f"{name}{number}") for number in range(20)]) for name in ("a", "b")]
    memory = DifficultyMemory(ALWAYS, steps_per_epoch=5)
    memory.record(0, dict.fromkeys((f"a{number}" for number in range(18)), 1.0))
    for step in range(1, 6):
        parts = [name[0] for name in asked(feed(None, parts=mixed).batch(step))]
        assert [name[0] for name in asked(feed(memory, parts=mixed).batch(step))] == parts
        assert [name[0] for name in asked(feed(None, parts=mixed).others(step, 1, [0, 1, 2, 3]))] == parts


@pytest.mark.slow
def test_a_run_replaces_flat_groups_skips_what_is_known_and_resumes(clips: Path, tmp_path: Path) -> None:
    options = ["rewards.format.weight=0", "rewards.keyframe.weight=0", "eval.every_steps=0", "num_steps=4"]
    plain = runs.run(tmp_path / "plain", clips, *options, "checkpoint.every_steps=0", "num_steps=2")[-2:]
    dynamic = ["dynamic_sampling.max_resample_times=2", "dynamic_sampling.skip_epochs=0.5"]
    whole = runs.run(tmp_path / "whole", clips, *options, *dynamic)[-4:]
    assert whole[0]["groups/no_signal"] < plain[0]["groups/no_signal"]
    assert whole[0]["groups/resampled"] >= 4 * plain[0]["groups/no_signal"] > 0
    assert "groups/left_out" not in plain[1] and whole[1]["groups/left_out"] > 0
    rows = pq.read_table(tmp_path / "whole" / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 16  # a step is as large as ever
    runs.run(tmp_path / "half", clips, *options, *dynamic, "num_steps=2", "optim.schedule=constant")
    runs.run(tmp_path / "other", clips, *options, *dynamic, "optim.schedule=constant")
    resumed = runs.run(tmp_path / "half", clips, *options, *dynamic, "optim.schedule=constant")
    assert runs.repeatable(resumed) == runs.repeatable(read_rows(tmp_path / "other" / "metrics.jsonl"))


@pytest.mark.slow
def test_the_reward_that_the_config_names_tells_what_is_known(clips: Path, tmp_path: Path) -> None:
    short = ["num_steps=1", "eval.every_steps=0", "checkpoint.every_steps=0"]
    dynamic = ["dynamic_sampling.skip_epochs=0.5", "dynamic_sampling.reward=keyframe"]
    (row,) = runs.run(tmp_path / "run", clips, *short, *dynamic)[-1:]
    stored = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    values = {name: defaultdict(set) for name in ("keyframe", "accuracy")}
    for name, by_sample in values.items():
        for rollout in stored:
            by_sample[rollout["sample_id"]].add(rollout[f"rewards/{name}"])
    known = {name: sum(each in ({0.0}, {1.0}) for each in values[name].values()) for name in values}
    assert known["keyframe"] != known["accuracy"]  # else it could be either
    assert row["groups/left_out"] == known["keyframe"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_resample_times=-1", "max_resample_times must be at least 0"),
        ("skip_epochs=-0.1", "skip_epochs must be at least 0"),
        ("solved_from=0.0", "hopeless_to must be below solved_from"),
        ("max_resample_times=1 loss.beta=0.1", "groups of equal rewards have a gradient too"),
    ],
)
def test_values_that_mean_nothing_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config([DEMO, *f"dynamic_sampling.{override}".split()])


def test_the_memory_wants_a_reward_that_there_is() -> None:
    with pytest.raises(ValueError, match="dynamic_sampling.reward: no reward is called 'judge'"):
        load_config([DEMO, "dynamic_sampling.skip_epochs=1", "dynamic_sampling.reward=judge"])
