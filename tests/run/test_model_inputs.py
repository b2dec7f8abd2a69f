"""What a saved model says about how it is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo.config.load import load_config
from grpo.run.final_model import save_final
from grpo.run.model_inputs import ModelInputs, read_inputs
from tests.support import tiny
from tests.support.served import demo_model

DEMO = str(tiny.ROOT / "configs" / "demo.yaml")


def test_a_final_model_is_asked_as_its_run_asked_it(tmp_path: Path) -> None:
    config = load_config([DEMO, "media.max_frames=8", "rollout.stop=[</answer>]"])
    config = replace(config, prompt=replace(config.prompt, template="{question} ${{x}} {options}"))
    inputs = ModelInputs.of(config)
    save_final(tmp_path / "final", tiny.policy(), dtype=torch.float32, step=1, inputs=inputs)
    read = read_inputs(str(tmp_path / "final"))
    assert read == inputs
    assert read.prompt.template == "{question} ${{x}} {options}" and read.media.max_frames == 8
    assert read.wording["tags"] == ["think", "keyframes", "answer"]  # the rewards ask for moments
    assert read.rollout.stop == ["</answer>"]
    assert read.max_prompt_tokens == config.rollout.max_prompt_tokens == 232


def test_a_model_made_of_it_is_asked_in_the_same_way(tmp_path: Path) -> None:
    base = demo_model(tmp_path / "base")
    family = replace(tiny.family(), path=str(base))
    family.save_model(tmp_path / "other", tiny.policy().model.state_dict(), max_shard_size="1GB")
    assert read_inputs(str(tmp_path / "other")) == read_inputs(str(base))


def test_settings_of_the_command_line_win(tmp_path: Path) -> None:
    base = str(demo_model(tmp_path / "base"))
    read = read_inputs(base, ["media.max_frames=4", "prompt.tags=[answer]", "rollout.max_new_tokens=9"])
    assert (read.media.max_frames, read.wording["tags"], read.rollout.max_new_tokens) == (4, ["answer"], 9)
    assert read.media.fps == 2.0 and read.rollout.max_model_tokens == 256


def test_a_model_that_does_not_say_it_is_shown_clips_that_leave_room_for_the_question() -> None:
    read = read_inputs(str(tiny.BASE_POLICY))
    # 8192 tokens, less 768 of the answer and 1024 of the question
    assert read.media.max_tokens == 6400
    assert read_inputs(str(tiny.BASE_POLICY), ["media.max_tokens=50"]).media.max_tokens == 50


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("media.max_frams=4", "no setting media.max_frams; did you mean media.max_frames?"),
        ("optim.lr=1", "Key 'optim' not in 'ModelInputs'"),
        ("media.max_frames=few", "media.max_frames"),
        ("media.max_frames=0", "media.max_frames must be at least 2, not 0"),
        ("media.min_frames=900", "media.min_frames"),
        ("rollout.stop=['']", "rollout.stop: an empty text"),
        ("rollout.max_new_tokens=9000", "rollout.max_new_tokens leaves no room"),
        ("a second question", "'a second question' is no setting"),
    ],
)
def test_a_setting_that_can_not_be_is_named(override: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_inputs(str(tiny.BASE_POLICY), [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"media": {"shutter": 1}, "prompt": {}, "rollout": {}}', "{"]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    base = demo_model(tmp_path / "base")
    (base / "inputs.json").write_text(content)
    with pytest.raises(ValueError, match=r"base/inputs\.json"):
        read_inputs(str(base))


def test_the_file_is_plain(tmp_path: Path) -> None:
    read = json.loads((demo_model(tmp_path / "base") / "inputs.json").read_text())
    assert read["media"]["max_pixels"] == 3136 and read["prompt"]["option"] == "{letter} {text}"
