"""The settings of an evaluation: shipped files load, and a training run's parts are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.benchmarks import find_benchmark
from grpo.config.evaluate import load_evaluation
from tests.support import tiny

SHIPPED = sorted((tiny.ROOT / "configs" / "eval").glob("*.yaml"))
LEAST = ["out_dir=out", "benchmark=jsonl", "data.path=x.jsonl"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_each_shipped_evaluation_loads(file: Path):
    config = load_evaluation([str(file), "model.path=some/model"])
    assert find_benchmark(config.benchmark).name == config.benchmark


def test_the_demos_evaluation_asks_as_its_training_does():
    from grpo.config.load import load_config

    training = load_config([str(tiny.ROOT / "configs" / "demo.yaml")])
    run = load_evaluation([str(tiny.ROOT / "configs" / "eval" / "demo.yaml")]).as_run("model")
    assert run.tags == training.tags and run.prompt.template == training.prompt.template
    assert [run.media.fps, run.media.max_frames, run.media.max_pixels] == [2.0, 16, 3136]


def test_models_are_called_by_their_folders():
    config = load_evaluation(
        [*LEAST, "model.path=runs/mine/final", "models.base=Qwen/Qwen2.5-VL-3B-Instruct"]
    )
    assert config.paths == {"mine-final": "runs/mine/final", "base": "Qwen/Qwen2.5-VL-3B-Instruct"}


def test_a_greedy_answer_has_a_temperature_that_logits_can_be_divided_by():
    config = load_evaluation([*LEAST, "model.path=m"])
    assert config.rollout.temperature == 0.0 and config.as_run("m").rollout.temperature == 1.0


def test_no_model_is_an_error():
    with pytest.raises(ValueError, match=r"config: model\.path is not set"):
        load_evaluation(LEAST)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["rollout.engine=transformers"], "structured output is vLLM's"),
        (["rollout.regex=(A|B"], r"'\(A\|B' is no regular expression: missing \)"),
    ],
)
def test_a_regex_that_can_not_be_kept_to_is_refused(more: list[str], says: str):
    with pytest.raises(ValueError, match=rf"rollout\.regex: {says}"):
        load_evaluation([*LEAST, "model.path=m", "rollout.regex=A|B", *more])
