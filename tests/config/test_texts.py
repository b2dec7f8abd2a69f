"""What is written in a config file or behind `key=` means what YAML 1.2 and the setting say, on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grpo.config.load import load_config, read_config, to_yaml
from grpo.config.schema import Config
from tests.support import tiny

DEMO = str(tiny.ROOT / "configs" / "demo.yaml")


def loaded(tmp_path: Path, text: str, *overrides: str) -> Config:
    file = tmp_path / "own.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config([DEMO, str(file), *overrides])


@pytest.mark.parametrize(
    "text", ["20260801_120000", "no", "010", "1.10", "1e3", "true", "1:30", "2026-08-01"]
)
def test_a_text_stays_as_it_was_written(text: str, tmp_path: Path) -> None:
    config = loaded(tmp_path, f"data: {{eval: [{{path: x.jsonl, name: {text}}}]}}", f"run_dir={text}")
    assert config.data.eval[0].name == text and config.run_dir == text
    (tmp_path / "written.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "written.yaml") == config


def test_a_number_with_a_zero_or_lines_in_it_is_that_number(tmp_path: Path) -> None:
    config = loaded(tmp_path, "num_steps: 010\nmedia: {max_pixels: 100_352}\noptim: {lr: 1e-5}")
    assert (config.num_steps, config.media.max_pixels, config.optim.lr) == (10, 100_352, 1e-5)


def test_arguments_of_rewards_are_what_yaml_takes_them_for(tmp_path: Path) -> None:
    text = "{a: 1, b: 2.50, c: 1e-3, d: true, e: no, f: 010, g: '1', h: [.5, x], i: null, j: -.inf, k: 1.}"
    args = loaded(tmp_path, f"rewards: {{accuracy: {{args: {text}}}}}").rewards["accuracy"].args
    assert args == {
        "a": 1, "b": 2.5, "c": 1e-3, "d": True, "e": "no", "f": "010", "g": "1", "h": [0.5, "x"], "i": None,
        "j": float("-inf"), "k": 1.0,
    }  # fmt: skip
    assert [type(args[name]) for name in "abdk"] == [int, float, bool, float]


def test_one_file_is_a_list_of_one_data_set() -> None:
    for value in ("my.jsonl", "[my.jsonl]", "[{path: my.jsonl}]", "[{path: my.jsonl, share: null}]"):
        [dataset] = load_config([DEMO, f"data.train={value}"]).data.train
        assert (dataset.path, dataset.reader) == ("my.jsonl", "jsonl")
    assert load_config([DEMO, "prompt.tags=answer", "model=./m", "prompt.system=Be brief."]).tags == (
        "answer",
    )


def test_a_section_without_entries_changes_nothing(tmp_path: Path) -> None:
    own = "optim:\nprompt: {system: }\nmedia: {cache_dir: }\nrewards: {accuracy: }\n"
    assert loaded(tmp_path, own) == load_config([DEMO])
    with pytest.raises(ValueError, match="rewards.accuracy is a section; its settings are fn, weight"):
        loaded(tmp_path, "rewards: {accuracy: null}")


def test_a_key_that_is_set_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no YAML: seed is set twice"):
        loaded(tmp_path, "seed: 1\nseed: 2\n")


def test_a_config_file_may_have_an_equals_sign_in_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lr=1e-6").mkdir()
    (tmp_path / "lr=1e-6" / "config.yaml").write_text("num_steps: 7")
    assert load_config([DEMO, str(tmp_path / "lr=1e-6" / "config.yaml")]).num_steps == 7
    (tmp_path / "seed=3").write_text("num_steps: 8")
    monkeypatch.chdir(tmp_path)
    config = load_config([DEMO, "seed=3", "seed=4"])
    assert (config.num_steps, config.seed) == (8, 4)


def test_home_and_environment_are_filled_into_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-me")
    monkeypatch.setenv("CLIPS", "/clips")
    config = load_config(
        [
            DEMO,
            "run_dir=~/runs/x",
            "model.path=${CLIPS}/model",
            "data.train=[{path: $CLIPS/a.jsonl, media_root: ~}, {path: ~/b.jsonl, media_root: ~/m}]",
            "media.cache_dir=$CLIPS/cache",
            "rewards.accuracy.fn=~/mine.py:right",
        ]
    )
    assert (config.run_dir, config.model.path) == ("/home-of-me/runs/x", "/clips/model")
    assert [(each.path, each.media_root) for each in config.data.train] == [
        ("/clips/a.jsonl", None),  # ~ alone is YAML's null
        ("/home-of-me/b.jsonl", "/home-of-me/m"),
    ]
    assert (
        config.media.cache_dir == "/clips/cache"
        and config.rewards["accuracy"].fn == "/home-of-me/mine.py:right"
    )


@pytest.mark.parametrize("text", ["${{USD}}", r"\${{x}}", "\\\\${{", "é 漢\n", "$a", "x: #y"])
def test_a_template_survives_the_runs_own_config_file(text: str, tmp_path: Path) -> None:
    config = load_config([DEMO])
    config = replace(config, prompt=replace(config.prompt, template="{question} " + text))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


def test_the_escape_for_a_literal_dollar_brace_is_taken(tmp_path: Path) -> None:
    config = loaded(tmp_path, r'prompt: {template: "{question} \\${{USD}}\n{options}\n{instruction}"}')
    assert config.prompt.template.startswith("{question} ${{USD}}\n") and "${{" in to_yaml(config)


def test_a_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text('prompt: {template: "{question} é"}', encoding="utf-8")
    code = "import sys; from grpo.config.load import load_config; "
    code += "print(ascii(load_config(sys.argv[1:]).prompt.template))"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, DEMO, str(tmp_path / "own.yaml")]
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == r"'{question} \xe9'"
    (tmp_path / "own.yaml").write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(ValueError, match="own.yaml is not UTF-8"):
        load_config([DEMO, str(tmp_path / "own.yaml")])


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    """Of a file, of a section in it, and of what is typed behind it; then all values that are out of bounds."""
    file = tmp_path / "bad.yaml"
    file.write_text("modle: {path: x}\nrollout: {enigne: vllm, sleep: true}\n")
    with pytest.raises(ValueError) as caught:
        load_config([str(file), "optim.lr=1", "optim.learnin_rate=2", "optim.learnin_rate=2"])
    assert str(caught.value) == (
        f"config: {file}: no setting modle.path; here it is model.path (docs/coming_from.md); "
        "no setting rollout.enigne; did you mean rollout.engine?; "
        "command line: no setting optim.learnin_rate; did you mean optim.lr?"
    )
    with pytest.raises(ValueError) as caught:
        load_config(["run_dir=x", "num_steps=1", "model.path=x", "optim.lr=-1", "rollout.max_new_tokens=0"])
    assert str(caught.value) == (
        "config: rollout.max_new_tokens must be above 0, not 0; optim.lr must be above 0, not -1.0"
    )


def test_all_wrong_keys_of_a_mapping_and_a_list_and_all_unset_ones_are_named_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        load_config(["rewards={a: {wieght: 1}, b: {weigth: 2}}", "data.train=[{pth: x}, {paht: y}]"])
    for key in ("rewards.a.wieght", "rewards.b.weigth", "data.train.0.pth", "data.train.1.paht"):
        assert f"no setting {key}; did you mean" in str(caught.value)
    with pytest.raises(
        ValueError, match="config: model.path is not set; num_steps is not set; run_dir is not set"
    ):
        load_config(["data.train=x"])
