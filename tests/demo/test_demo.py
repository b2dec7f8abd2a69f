"""The demo learns what its rewards say, with both engines."""

from pathlib import Path

import pytest

from tests.benchmarks.bench_demo import train_demo

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_accuracy_format_and_key_moment_are_learned(engine: str, tmp_path: Path) -> None:
    scores = train_demo(tmp_path / "run", f"rollout.engine={engine}")
    before, after = scores["before"], scores["after"]
    assert before["accuracy"] <= 0.45 and after["accuracy"] >= 0.9
    assert after["format"] > 0.95
    assert before["sampled/keyframe"] < 0.15 and after["sampled/keyframe"] > 0.6


def test_without_its_reward_the_key_moment_is_not_learned(tmp_path: Path) -> None:
    scores = train_demo(tmp_path / "run", "rewards.keyframe.weight=0")
    assert scores["after"]["accuracy"] >= 0.9
    assert scores["highest"]["sampled/keyframe"] < 0.25 and scores["highest"]["keyframe"] < 0.25
