"""What workers are sent, and how long they are given where no step waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from grpo.groups import Group
from grpo.media.clip import Clip, ClipSource, MediaError
from rewards.hostile import make_group
from rewards.scoring.specs import WorkerSettings
from tests.rewards.scoring.test_reward_workers import SAMPLE, Load, groups, load, spec
from tests.support import tiny
from tests.support.clips import facts_of

__all__ = ["load"]  # a fixture


@pytest.mark.slow
def test_where_no_step_waits_the_limit_is_from_one_value_to_the_next(load: Load) -> None:
    rewards = load(
        {"sleeps": spec("sleeps", args={"seconds": 0.3}, timeout_s=1.0)}, WorkerSettings(max_workers=1)
    )
    (in_step,) = rewards.score(groups(1, 8))  # 2.4 s of work
    assert in_step.columns["sleeps"][0] == 1.0 and in_step.columns["sleeps"][-1] is None
    (in_replay,) = rewards.scoring(in_step=False).tables(groups(1, 8))
    assert in_replay.columns["sleeps"] == (1.0,) * 8


def test_a_hang_costs_its_own_completion_where_no_step_waits_too(load: Load) -> None:
    rewards = load({"hangs": spec("hangs_on", args={"word": "2-1."}, timeout_s=1.0)})
    tables = rewards.scoring(in_step=False).tables(groups())
    (failed,) = [failure for table in tables for failure in table.failures]
    assert failed.summary == "TimeoutError: no value for 1 s (timeout_s)"
    assert failed.completion == groups()[2].rollouts[1].text and tables[2].totals.count(None) == 1


def test_frames_that_are_decoded_on_demand_are_decoded_once_and_not_by_the_workers(load: Load) -> None:
    decoded: list[int] = []

    def lazy(brightness: int) -> Clip:
        def load_frames() -> np.ndarray:
            decoded.append(brightness)
            if brightness == 3:
                raise MediaError("gone.mp4: no such file")
            return np.full((2, 28, 28, 3), brightness, np.uint8)

        return Clip(facts_of(2, 28, 28, 3, fps=1.0, path="v.mp4"), load_frames)

    def with_clip(group: Group, clip: Clip) -> Group:
        rollouts = tuple(replace(rollout, clip=clip) for rollout in group.rollouts)
        return Group(prompt=replace(group.prompt, clip=clip), rollouts=rollouts)

    many = [with_clip(group, lazy(index)) for index, group in enumerate(groups(4, 3))]
    tables = load({"length": spec("length"), "brightness": spec("brightness")}).score(many)
    assert [table.columns["brightness"] for table in tables[:3]] == [(0.0,) * 3, (1.0,) * 3, (2.0,) * 3]
    assert [each.summary for each in tables[3].failures] == [
        "grpo.media.clip.MediaError: gone.mp4: no such file"
    ] * 3
    assert [decoded.count(index) for index in range(3)] == [1, 1, 1] and 3 in decoded


def test_frames_are_sent_to_those_who_look_at_them(load: Load) -> None:
    prompts = [
        tiny.prompt(tiny.sample(f"s{p}", clip_source=ClipSource(video="x.mp4")), tiny.clip(seed=p))
        for p in range(3)
    ]
    many = [make_group(["a", "b"], prompt.sample, clip=prompt.clip) for prompt in prompts]
    tables = load({"length": spec("length"), "brightness": spec("brightness")}).score(many)
    for table, prompt in zip(tables, prompts, strict=True):
        assert prompt.clip is not None
        assert table.columns["brightness"] == (float(prompt.clip.frames_FHWC.mean()),) * 2


def test_a_column_that_can_not_be_sent_is_named(load: Load) -> None:
    sample = replace(SAMPLE, columns={"broken": lambda: None})
    (table,) = load({"length": spec("length")}).score([make_group(["a"], sample)])
    assert "pickle" in table.failures[0].summary
