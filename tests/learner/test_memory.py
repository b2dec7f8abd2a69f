"""What saves memory changes no gradient: checkpointing, offloaded activations, an offloaded reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.commands.doctor.plan import memory_of
from grpo.config.learner import LossConfig
from grpo.config.load import load_config
from grpo.learner.reference import SecondCopy
from grpo.startup.assembly import build_outline
from tests.support import tiny
from tests.support.learners import (
    counts_of,
    gradient_of,
    moved_policy,
    packed,
    text_groups,
    updated,
)

TRAINED: dict[str, dict[str, Any]] = {"all": {}, "adapters": {"lora": tiny.LORA}}


def gradient(**options: Any) -> Tensor:
    policy = tiny.policy(seed=1, **options).train()
    (row,) = packed(tiny.ragged_groups())
    (policy(row).logps_T * row.advantages_T).sum().backward()
    return gradient_of(policy)


@pytest.mark.parametrize("trained", TRAINED)
def test_recomputed_layers_see_each_prompt_once_and_give_the_same_gradient(trained: str) -> None:
    """With frozen embeddings too, whose output has no gradient."""
    seen: list[int] = []
    policy = tiny.policy(seed=1, gradient_checkpointing=True, **TRAINED[trained]).train()
    layers = policy.model.model.language_model.layers
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    (row,) = packed(tiny.ragged_groups())
    (policy(row).logps_T * row.advantages_T).sum().backward()
    assert seen == [len(row.input_ids_N)] * 2 * len(layers)  # forward, and once more in the backward pass
    expected = gradient(**TRAINED[trained])
    assert float(expected.norm()) > 0
    torch.testing.assert_close(gradient_of(policy), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("trained", TRAINED)
def test_offloaded_are_the_inputs_of_all_layers_and_little_else(
    trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing has to move, so that torch's own hooks are replaced by ones that copy and count."""
    (row,) = packed(tiny.ragged_groups())
    kept: list[tuple[int, ...]] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(tuple(saved.shape))
        return saved.clone()

    def copying(pin_memory: bool) -> Any:
        assert not pin_memory  # there is no GPU to copy from
        return torch.autograd.graph.saved_tensors_hooks(pack, lambda copy: copy)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", copying)
    found = gradient(gradient_checkpointing=True, activation_offloading=True, **TRAINED[trained])
    torch.testing.assert_close(found, gradient(**TRAINED[trained]), atol=1e-6, rtol=1e-5)
    config = tiny.family().config.text_config
    inputs = [shape for shape in kept if shape == (1, len(row.input_ids_N), config.hidden_size)]
    assert len(inputs) >= config.num_hidden_layers
    assert not any(
        config.intermediate_size in shape for shape in kept
    )  # what is inside a layer is recomputed
    with torch.no_grad():
        kept.clear()
        tiny.policy(gradient_checkpointing=True, activation_offloading=True).train()(row)
    assert kept == []


def test_an_offloaded_reference_gives_the_same_update() -> None:
    groups = text_groups()
    rows, results = packed(groups, tokens_per_row=60), []
    for offload in (False, True):
        policy = tiny.policy(seed=1)
        settings = LossConfig(beta=0.04, reference_offload=offload)
        updated(policy, rows, counts_of(groups), loss=settings, reference=moved_policy())
        results.append(gradient_of(policy))
    assert torch.equal(*results)


def test_an_offloaded_reference_is_on_the_device_only_while_it_is_needed_and_is_not_copied_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU nothing has to move, so that a copy stands for what is moved."""
    reference = SecondCopy(moved_policy(), torch.device("cpu"), offload=True)
    tensors = [*reference.policy.parameters(), *reference.policy.buffers()]
    places, copied = [each.data_ptr() for each in tensors], []
    assert len(set(places)) > 50
    monkeypatch.setattr(Tensor, "to", lambda self, *_, **__: copied.append(self) or self.clone())
    with reference.ready():
        assert not {each.data_ptr() for each in tensors} & {*places}
    assert [each.data_ptr() for each in tensors] == places
    assert len(copied) == len(tensors)


def test_the_doctor_counts_what_each_choice_takes() -> None:
    def memory(*overrides: str) -> dict[str, float]:
        config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *overrides])
        return memory_of(config, build_outline(config, tiny.family()))

    all_weights = sum(weight.numel() for weight in tiny.policy().parameters())
    full, small = memory("loss.beta=0.1"), memory("optim.optimizer=adamw_8bit")
    assert full["trained_gib"] * 2**30 == 16 * all_weights and full["frozen_gib"] == 0
    assert full["reference_gib"] * 2**30 == 4 * all_weights and small["reference_gib"] == 0
    assert small["trained_gib"] * 2**30 == 10 * all_weights
    lora, low = memory("model.lora.r=4"), memory("model.lora.r=4", "model.load_in_4bit=true")
    assert lora["frozen_gib"] * 2**30 == 2 * all_weights
    layers = tiny.policy().model.model.language_model.layers
    linear = sum(module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear))
    assert low["frozen_gib"] * 2**30 == 2 * (all_weights - linear) + 0.5 * linear
