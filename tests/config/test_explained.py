"""What `--help` prints of the settings is a config file, with the meaning and the choices of each."""

from __future__ import annotations

from dataclasses import fields

import yaml

from grpo.config.explained import explained
from grpo.config.schema import Config
from grpo.config.texts import keys_of
from rewards.scoring.specs import RewardSpec


def test_the_help_is_a_config_file_that_says_what_settings_mean() -> None:
    text = "\n".join(explained())
    read = yaml.safe_load(text)
    assert [*read] == [each.name for each in fields(Config)]
    for key in keys_of(Config):
        value = read
        for name in key.split("."):
            value = value[name]
    assert read["rollout"]["group_size"] == 8 and read["loss"]["type"] == "dapo"
    words = " ".join(line.strip(" #") for line in text.splitlines())
    assert "adamw | adamw_8bit. adamw_8bit: its moments in 8 bits" in words
    assert "Completions per prompt (G); one alone would have no group to be compared with." in words
    for each in fields(RewardSpec):
        assert f"#   {each.name}: " in text
