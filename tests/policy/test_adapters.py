"""LoRA: the adapters are peft's own, train alone, and reach engines, folders and the reference as they should."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from grpo.config.learner import LossConfig, OptimConfig
from grpo.config.model import LoraConfig, LoraTargets
from grpo.policy.adapters import adapted_layers, adapter_weights, is_adapter, merged
from grpo.policy.model import Policy
from grpo.policy.weights import has_tied_head
from grpo.run.final_model import save_final
from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, gap, prompts
from tests.support import tiny
from tests.support.learners import counts_of, make_learner, packed, text_groups
from tests.support.runs import repeatable, run, weights


def adapters_of(policy: Policy) -> dict[str, Tensor]:
    return {name: weight for name, weight in policy.named_parameters() if is_adapter(name)}


def stirred() -> Policy:
    """The family's base with adapters that are not zero."""
    policy = tiny.policy(lora=tiny.LORA)
    tiny.stir(adapters_of(policy), 3)
    return policy


@pytest.fixture
def stored(tmp_path: Path, each_family: str) -> tuple[Policy, Path]:
    policy = stirred()
    folder = tmp_path / "final"
    save_final(folder, policy, dtype=torch.float32)
    return policy, folder


def logps(policy: Policy) -> Tensor:
    (row,) = packed(tiny.ragged_groups())
    with torch.no_grad():
        return policy(row).logps_T


@pytest.mark.usefixtures("each_family")
def test_new_adapters_change_nothing_and_train_alone() -> None:
    policy = tiny.policy(lora=tiny.LORA)
    assert torch.equal(logps(policy), logps(tiny.policy()))
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trained == adapters_of(policy).keys()
    parts = {policy.family.part_of(name.removeprefix("model.")) for name in trained}
    assert parts == {"language", "vision", "merger"}


def test_only_the_targeted_layers_have_adapters() -> None:
    lora = LoraConfig(r=2, targets=LoraTargets(language=["q_proj", "mlp.down_proj"], vision=["attn.qkv"]))
    names = [name.split(".lora_")[0] for name in adapters_of(tiny.policy(lora=lora))]
    assert {".".join(name.split(".")[-2:]) for name in names} == {
        "self_attn.q_proj", "mlp.down_proj", "attn.qkv"
    }  # fmt: skip
    assert not any("visual" in name and "attn.qkv" not in name for name in names)


def test_a_target_that_no_layer_has_is_named() -> None:
    lora = LoraConfig(r=2, targets=LoraTargets(vision=["q_proj"]))
    message = (
        r"model.lora.targets.vision: no linear layer there is called 'q_proj'; there are attn.proj, attn.qkv"
    )
    with pytest.raises(ValueError, match=message):
        tiny.policy(lora=lora)


def test_peft_loads_the_adapter_folder_to_the_same_policy(stored: tuple[Policy, Path]) -> None:
    policy, folder = stored
    family = tiny.family()
    theirs = PeftModel.from_pretrained(family.load_model(torch.float32), str(folder / "adapter"))
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 8
    text = torch.tensor([list(tiny.prompt(tiny.sample(), None).token_ids)])
    with torch.no_grad():
        found, plain = theirs(input_ids=text).logits, policy.model(input_ids=text).logits
    assert torch.equal(found, plain)
    assert not torch.allclose(found, family.load_model(torch.float32)(input_ids=text).logits, atol=1e-2)


def test_what_is_sent_and_stored_is_pefts_own_merge(stored: tuple[Policy, Path]) -> None:
    policy, folder = stored
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    sent = dict(policy.named_weights())
    theirs: Any = PeftModel.from_pretrained(
        tiny.family().load_model(torch.float32), str(folder / "adapter")
    ).merge_and_unload()
    expected = theirs.state_dict()
    assert sent.keys() == expected.keys() - {"lm_head.weight"}  # tied: it is the embedding
    for name, weight in sent.items():
        assert torch.equal(expected[name], weight), name
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # tied: stored once
    final = replace(tiny.family(), path=str(folder)).load_model(torch.float32).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in final.items())
    # Nothing stays merged.
    assert not any(module.merged for module in policy.modules() if isinstance(module, LoraLayer))
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())


def test_adapters_are_merged_before_anything_is_rounded() -> None:
    """A base in bf16 with adapters in fp32: what is sent is their fp32 sum, which the engine rounds once."""
    # 1 + 2^-10 lies between bf16's 1 and 1 + 2^-7: rounded early, the adapter is lost.
    weight_OI = torch.ones(3, 2, dtype=torch.bfloat16)
    down_RI, up_OR = torch.full((1, 2), 2.0**-5), torch.full((3, 1), 2.0**-5)
    found = merged(weight_OI, down_RI, up_OR, scaling=1.0)
    assert found.dtype == torch.float32 and torch.equal(found, torch.full((3, 2), 1 + 2.0**-10))
    policy = tiny.policy(seed=1, lora=tiny.LORA)
    name, layer = next(iter(adapted_layers(policy.model).items()))
    layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16()
    sent = dict(policy.named_weights())[f"{name}.weight"]
    base = layer.base_layer.weight.float()
    down_RI, up_OR, scaling = adapter_weights(layer)
    assert sent.dtype == torch.float32
    torch.testing.assert_close(sent, base + scaling * up_OR @ down_RI)


@pytest.mark.usefixtures("each_family")
def test_a_head_of_its_own_is_sent_beside_the_embedding() -> None:
    policy = tiny.policy()
    policy.model.lm_head.weight = nn.Parameter(2 * policy.model.lm_head.weight.detach())
    sent = dict(policy.named_weights())
    assert not has_tied_head(policy.model) and sent.keys() == policy.model.state_dict().keys()
    assert torch.equal(sent["lm_head.weight"], 2 * sent["model.language_model.embed_tokens.weight"])


def test_the_final_model_is_the_policy_without_adapters(stored: tuple[Policy, Path]) -> None:
    policy, folder = stored
    family = replace(tiny.family(), path=str(folder))
    merged = Policy(family.load_model(torch.float32), family, temperature=1.0)
    torch.testing.assert_close(logps(merged), logps(policy), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("each_family")
def test_the_reference_is_the_policy_with_its_adapters_off() -> None:
    policy, rows = stirred(), packed(tiny.ragged_groups(), tokens_per_row=600)
    learner = make_learner(policy, loss=LossConfig(beta=0.1), reference=tiny.policy())
    found = learner.reference_logps(rows)
    assert len(found) == len(rows) > 1
    with torch.no_grad():
        for row, logps_T in zip(rows, found, strict=True):
            assert torch.equal(logps_T, tiny.policy()(row).logps_T)
            assert not torch.allclose(logps_T, policy(row).logps_T, atol=1e-2)
    assert all(weight.requires_grad for weight in adapters_of(policy).values())


def test_a_checkpoint_holds_the_adapters_and_their_moments_alone(tmp_path: Path) -> None:
    learners = [
        make_learner(tiny.policy(lora=tiny.LORA), loss=LossConfig(), optim=OptimConfig(lr=1e-2))
        for _ in range(2)
    ]
    groups = text_groups()
    for step in (1, 2):
        learners[0].update(packed(groups), counts_of(groups), step)
    learners[0].accelerator.save_state(str(tmp_path))
    names = load_file(tmp_path / "model.safetensors").keys()
    trained = learners[0].policy
    assert names == adapters_of(trained).keys()
    learners[1].accelerator.load_state(str(tmp_path))
    for learner in learners:
        learner.update(packed(groups), counts_of(groups), 3)
    for name, weight in learners[1].policy.named_parameters():
        assert torch.equal(weight, dict(trained.named_parameters())[name]), name


def test_adapters_stay_fp32_on_a_base_in_bf16() -> None:
    family = tiny.family()
    policy = Policy(family.load_model(torch.bfloat16), family, temperature=1.0, lora=tiny.LORA)
    assert {weight.dtype for weight in adapters_of(policy).values()} == {torch.float32}
    other = stirred()
    policy.load_state_dict(adapters_of(other), strict=False)
    sent = dict(policy.named_weights())
    name = "model.language_model.layers.0.mlp.up_proj"
    layer = policy.model.get_submodule(name)
    delta = layer.get_delta_weight("default")
    assert torch.equal(
        sent[f"{name}.weight"].bfloat16(), (layer.base_layer.weight.float() + delta).bfloat16()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logps(policy)
    assert float((found - logps(other)).abs().mean()) < 0.05


OVERRIDES = [
    "model.lora.r=4",
    "model.lora.targets.vision=[all-linear]",
    "optim.lr=5e-3",
    "optim.warmup_steps=0",
    "loss.beta=0.04",
]


@pytest.mark.slow
def test_a_run_with_adapters_samples_what_it_trains_and_resumes(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows = run(folder, clips, *OVERRIDES)
    assert all(row["sampler/gap_max"] < 1e-4 for row in rows[1:])
    assert rows[1]["policy/kl"] == pytest.approx(0.0, abs=1e-9)
    assert rows[2]["policy/kl"] > 1e-5  # the adapters moved the policy from the reference
    start, end = load_file(tiny.BASE_POLICY / "model.safetensors"), weights(folder)
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert any("visual" in name for name in moved) and any("mlp.up_proj" in name for name in moved)
    assert not any("norm" in name or "embed" in name for name in moved)
    size = sum(f.stat().st_size for f in (folder / "checkpoints" / "step_000004").iterdir())
    assert size < 0.5 * (tiny.BASE_POLICY / "model.safetensors").stat().st_size
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    assert repeatable(run(folder, clips, *OVERRIDES)) == repeatable(rows)
    for name, weight in weights(folder).items():
        assert torch.equal(weight, end[name]), name


@pytest.mark.slow
@pytest.mark.usefixtures("each_family")
@pytest.mark.parametrize("each_family", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_vllm_samples_with_the_adapters() -> None:
    """It has only ever loaded the base: what it knows of adapters, it was sent."""
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    policy = tiny.policy(lora=tiny.LORA, temperature=TEMPERATURE)
    engine = vllm_engine(policy)
    for seed in (3, 4):  # merged anew from the base each time
        tiny.stir(adapters_of(policy), seed)
        assert gap(policy, engine.generate(prompts(), SAMPLING, SEEDS)) > 1e-2
        engine.sync()
        assert gap(policy, engine.generate(prompts(), SAMPLING, SEEDS)) < 1e-3
    engine.close()
