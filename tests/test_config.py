"""Every shipped config is valid, and what is wrong with a config is said with its key."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from grpo.config import Config, check_same_run, load_config, to_yaml
from grpo.data import READERS
from rewards.runner import load_rewards
from tests import tiny

SHIPPED = sorted((tiny.ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((tiny.ROOT / "configs" / "overlays").glob("*.yaml"))
DEMO = str(tiny.ROOT / "configs" / "demo.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_with_its_rewards_and_readers(path: Path) -> None:
    config = load_config([str(path)])
    load_rewards(config.rewards).probe()
    assert {dataset.reader for dataset in [*config.data.train, *config.data.eval]} <= READERS.keys()


def test_both_jobs_are_shipped() -> None:
    assert {"demo", "egovlm_3b"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_goes_with_the_real_job(path: Path) -> None:
    job = str(tiny.ROOT / "configs" / "egovlm_3b.yaml")
    assert load_config([job, str(path)]) != load_config([job])


def test_every_setting_is_set_by_a_config_or_a_test() -> None:
    files = [*tiny.ROOT.glob("configs/**/*.yaml"), *tiny.ROOT.glob("tests/**/*.py")]
    text = "\n".join(file.read_text() for file in files)
    unset = [key for key in keys_of(Config) if not re.search(rf"\b{key.split('.')[-1]}['\"]?\s*[=:]", text)]
    assert unset == []


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(cls).items():
        if isinstance(kind, type) and is_dataclass(kind):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    extra = tmp_path / "more.yaml"
    extra.write_text("optim: {lr: 5.0e-5, warmup_steps: 9}\n")
    config = load_config([DEMO, str(extra), "optim.lr=2e-6", "rewards.keyframe.weight=0"])
    assert (config.optim.lr, config.optim.warmup_steps) == (2e-6, 9)
    assert config.rewards["keyframe"].weight == 0
    assert config.optim.prompts_per_step == 16  # the demo's


def test_a_config_survives_its_own_yaml(tmp_path: Path) -> None:
    config = load_config([DEMO])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config([str(file)]) == config
    check_same_run(file, config)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("reward.accuracy.weight=1", "'reward' not in 'Config'. Did you mean: 'rewards'"),
        ("optim.lrr=1", "Key 'lrr' not in 'OptimConfig'. Did you mean: 'lr'"),
        ("rewards.accuracy.wieght=1", "Did you mean: 'weight'"),
        ("optim.lr=fast", "optim.lr"),
        ("rollout.engine=vlm", "rollout.engine: .*'vlm'"),
        ("rollout.group_size=1", "rollout.group_size must be at least 2"),
        ("num_steps=0", "num_steps must be above 0, not 0"),
        ("media.min_frames=99", "media.min_frames"),
        ("rollout.gpu_memory_frac=1.5", "rollout.gpu_memory_frac"),
        ("no-such-file.yaml", "no file no-such-file.yaml"),
        ("optim.lr=-1", "optim.lr must be above 0, not -1"),
        ("loss.beta=-1", "loss.beta must not be negative, not -1"),
        ("rollout.max_new_tokens=256", "rollout.max_new_tokens leaves no room"),
        ("prompt.template='{questoin}'", "prompt.template: 'questoin' in"),
        ("prompt.option='{'", "prompt.option: "),
        ("rewards={accuracy: [}", "no YAML"),
        ("data.train.0.path=mine.jsonl", "lists are set whole"),
        ("data.train=mine.jsonl", "data.train: "),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([DEMO, argument])
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("num_steps: 3\n")
    with pytest.raises(ValueError, match="config: (model.path|run_dir) is not set"):
        load_config([str(file)])


def test_the_keyframes_tag_is_asked_for_only_with_a_keyframe_reward(tmp_path: Path) -> None:
    assert load_config([DEMO]).tags == ("think", "keyframes", "answer")
    file = tmp_path / "plain.yaml"
    file.write_text(
        "run_dir: r\nnum_steps: 1\nmodel: {path: m}\ndata: {train: [{path: x}]}\nrewards: {accuracy: {}}\n"
    )
    assert load_config([str(file)]).tags == ("think", "answer")
    assert load_config([str(file), "prompt.tags=[answer]"]).tags == ("answer",)


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt.tags: .*'thoughts'"):
        load_config([DEMO, "prompt.tags=[thoughts,answer]"])
