"""What trains, and how it is kept: parts, adapters, precision; and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from grpo import train
from grpo.config.load import load_config
from grpo.config.model import ModelConfig
from grpo.learner import launching
from tests.support import tiny
from tests.support.runs import reset_process_state

DEMO = str(tiny.ROOT / "configs" / "demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model.lora.r=-1", "model.lora.r must be at least 0"),
        ("model.lora.r=4 model.lora.alpha=0", "model.lora.alpha must be above 0, not 0"),
        ("model.lora.r=4 model.lora.targets.language=[]", "model.lora.targets names no layers"),
        ("model.lora.r=4 model.lora.dropout=0.1", "no setting model.lora.dropout"),
        ("model.lora.r=4 model.freeze=[language]", "model.freeze and model.lora.targets both name language"),
        (
            "model.lora.r=4 model.freeze_vision=true model.lora.targets.merger=[mlp.0]",
            "model.freeze and model.lora.targets both name merger",
        ),
        ("model.freeze=[language,vision,merger]", "model.freeze leaves nothing to train"),
        ("model.freeze=[tower]", "model.freeze"),
        ("model.load_in_4bit=true", "model.load_in_4bit needs model.lora.r"),
        ("model.new_rows_only=true model.lora.r=4", "model.new_rows_only: neither model.lora nor a frozen"),
        ("model.new_rows_only=true model.freeze=[language]", "model.new_rows_only: neither model.lora nor a"),
        (
            "model.new_rows_only=true optim.optimizer=adamw_8bit",
            "model.new_rows_only does not go with optim.",
        ),
        ("model.activation_offloading=true", "model.activation_offloading moves what .*: set that too"),
        ("model.lora.r=4 loss.beta=0.1 loss.sync_ref_model=true", "loss.sync_ref_model does not go with"),
        ("loss.sync_ref_model=true", "loss.sync_ref_model needs a loss.beta or a loss.care.bonus above 0"),
        (
            "optim.optimizer=adamw_8bit optim.robust.method=spd optim.robust.strength=1",
            "optim.robust does not go with optim.optimizer=adamw_8bit",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([DEMO, *arguments.split()])
    assert "\n" not in str(caught.value)


def test_freeze_vision_is_short_for_tower_and_merger() -> None:
    assert ModelConfig(freeze_vision=True).frozen == ModelConfig(freeze=["vision", "merger"]).frozen
    assert ModelConfig().frozen == frozenset()
    assert load_config([DEMO, "model.freeze=[language,merger]"]).model.frozen == {"language", "merger"}


@pytest.mark.usefixtures("each_family")
@pytest.mark.parametrize("part", ["language", "vision", "merger"])
def test_a_frozen_part_is_that_part(part: str) -> None:
    policy = tiny.policy(frozen=(part,))
    named = list(policy.model.named_parameters())
    frozen = {name for name, weight in named if not weight.requires_grad}
    visual = {name for name, _ in named if name.startswith("model.visual.")}
    mergers = {name for name in visual if "merger" in name}
    expected = {
        "language": {name for name, _ in named} - visual,
        "vision": visual - mergers,
        "merger": mergers,
    }
    assert frozen == expected[part] and frozen


@pytest.mark.parametrize("key", ["model.load_in_4bit=true", "optim.optimizer=adamw_8bit"])
def test_low_bits_without_bitsandbytes_or_under_deepspeed_are_refused_before_the_data_is_read(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [DEMO, f"run_dir={tmp_path}", f"model.path={tiny.BASE_POLICY}", "model.lora.r=4", key]
    arguments += ["data.train=[{path: nowhere.jsonl}]", "rollout.engine=transformers"]
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="bitsandbytes is not installed"):
        train.main(arguments)
    reset_process_state()
    monkeypatch.setattr(launching, "find_spec", lambda name: object())
    config, accelerator = (
        load_config(arguments),
        SimpleNamespace(num_processes=1, distributed_type=DistributedType.DEEPSPEED),
    )
    with pytest.raises(ValueError, match=f"{key.split('=')[0]}.* is not supported with DEEPSPEED"):
        launching.check_launch(accelerator, config.optim, config.model)  # pyright: ignore[reportArgumentType]


def test_new_rows_are_refused_where_weights_are_cut() -> None:
    config = load_config([DEMO, "model.new_rows_only=true"])
    accelerator = SimpleNamespace(num_processes=1, distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match="model.new_rows_only does not go with DEEPSPEED"):
        launching.check_launch(accelerator, config.optim, config.model)  # pyright: ignore[reportArgumentType]


def test_fsdp_without_gpus_is_refused_and_not_run_as_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = load_config([DEMO])
    accelerator = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="FSDP2 was launched, but accelerate offers it on GPUs only"):
        launching.check_launch(accelerator, config.optim, config.model)  # pyright: ignore[reportArgumentType]
