"""The demo learns what its rewards say, with both engines and with policies of two families."""

from pathlib import Path

import pytest

from tests.benchmarks.bench_demo import ARMS, train_demo

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("arm", ["vllm", "transformers"])
def test_accuracy_format_and_key_moment_are_learned(arm: str, tmp_path: Path) -> None:
    scores = train_demo(tmp_path / "run", *ARMS[arm])
    before, after = scores["before"], scores["after"]
    assert before["accuracy"] <= 0.45 and after["accuracy"] >= 0.9
    assert after["format"] > 0.95
    assert before["sampled/keyframe"] < 0.15 and after["sampled/keyframe"] > 0.6


def test_a_policy_of_another_family_learns_it_too(tmp_path: Path) -> None:
    # As long as it takes: `tests.benchmarks.bench_demo` has the whole run.
    scores = train_demo(tmp_path / "run", *ARMS["Qwen3-VL, vllm"], "num_steps=12", "eval.every_steps=12")
    before, after = scores["before"], scores["after"]
    assert before["accuracy"] <= 0.45 and after["accuracy"] >= 0.9
    assert before["format"] < 0.1 and after["format"] > 0.95


def test_without_its_reward_the_key_moment_is_not_learned(tmp_path: Path) -> None:
    scores = train_demo(tmp_path / "run", "rewards.keyframe.weight=0")
    assert scores["after"]["accuracy"] >= 0.9
    assert scores["highest"]["sampled/keyframe"] < 0.25 and scores["highest"]["keyframe"] < 0.25
