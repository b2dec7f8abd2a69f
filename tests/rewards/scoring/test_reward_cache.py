"""Values that are known already: which calls they spare, and which they must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rewards.hostile import make_group
from rewards.scoring.specs import RewardSpec, WorkerSettings
from tests.rewards.scoring.test_reward_workers import SAMPLE, Load, groups, load, spec

__all__ = ["load"]  # a fixture


def test_slow_values_are_reused_for_the_same_completions(load: Load) -> None:
    rewards = load({"slow": spec("sleeps", args={"seconds": 0.1})})
    rewards.score(groups(1, 2))  # its speed is known from now on
    rewards.score(groups(1, 2))
    keys = rewards.cache.keys(rewards.rewards[0], groups(1, 2)[0].rollouts)
    assert [rewards.cache.get(key) for key in keys] == [1.0, 1.0]
    other = make_group(["another text"], SAMPLE)
    with pytest.raises(KeyError):
        rewards.cache.get(rewards.cache.keys(rewards.rewards[0], other.rollouts)[0])


def test_a_cached_value_is_not_asked_for_again_and_another_question_is(load: Load, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    rewards = load({"counts": spec("numbers_its_calls", args={"file": str(calls)}, cache=True)})
    own, other = make_group(["x"], SAMPLE), make_group(["x"], replace(SAMPLE, id="other"))
    values = [rewards.score([group])[0].columns["counts"] for group in (own, own, other, own, other)]
    assert values == [(1.0,), (1.0,), (2.0,), (1.0,), (2.0,)]
    assert calls.read_text() == "x\nx\n"


TWO_CONSTANTS = """
from rewards import reward
@reward
def one(rollout, *, more=0.0):
    return 1.0 + more
@reward
def two(rollout):
    return 2.0
"""


def test_a_cached_value_is_not_taken_for_another_function_other_arguments_or_other_code(
    load: Load, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(TWO_CONSTANTS)
    specs = {
        "one": RewardSpec(fn=f"{plugin}:one", cache=True),
        "two": RewardSpec(fn=f"{plugin}:two", cache=True),
        "more": RewardSpec(fn=f"{plugin}:one", cache=True, args={"more": 3}),
    }
    here = WorkerSettings(max_workers=0)

    def first_key() -> bytes:
        rewards = load(specs, here)
        return rewards.cache.keys(rewards.rewards[0], groups(1, 1)[0].rollouts)[0]

    rewards = load(specs, here)
    for _ in range(2):
        assert rewards.score(groups(1, 1))[0].columns == {"one": (1.0,), "two": (2.0,), "more": (4.0,)}
    before = first_key()
    assert first_key() == before
    plugin.write_text(TWO_CONSTANTS.replace("1.0", "1.5"))
    assert first_key() != before
