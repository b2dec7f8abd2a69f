"""What reaches vLLM is what the policy has, and the proof notices where it is not: with the real engine on CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config.model import LoraConfig
from grpo.policy.adapters import is_adapter
from grpo.policy.model import Policy
from grpo.rollout.sync_proof import ALWAYS_FIRST, SyncProof, make_prompt
from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, gap, prompts
from tests.support import tiny

Weights = Iterable[tuple[str, Tensor]]

pytest.importorskip("vllm")

LAYER = "model.language_model.layers.1"


def proof_of(policy: Policy) -> SyncProof:
    return SyncProof(
        policy=policy, prompt=make_prompt(policy.family), dtype=torch.float32, max_gap=2e-3, every=1
    )


def made(lora: LoraConfig | None = None, **options: Any) -> Any:
    from tests.support.engines import vllm_engine

    policy = tiny.policy(temperature=TEMPERATURE, lora=lora)
    return vllm_engine(policy, proof=proof_of(policy), **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """An engine that gets whole weights."""
    engine = made()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def adapter_engine() -> Iterator[Any]:
    """An engine that gets adapters beside its weights, those of the vision tower too."""
    engine = made(tiny.LORA, lora_rank=4, lora_in_tower=True)
    tiny.stir(adapters_of(engine), 3)
    yield engine
    engine.close()


def adapters_of(engine: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in engine.policy.named_parameters() if is_adapter(name)}


@pytest.fixture
def on_the_way(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[Weights], Weights]], None]]:
    """Changes the weights between policy and engine; after the test both are as they were."""
    load = engine.weights.load

    def changed_by(change: Callable[[Weights], Weights]) -> None:
        monkeypatch.setattr(engine.weights, "load", lambda weights: load(change(weights)))

    yield changed_by
    monkeypatch.undo()
    engine.sync()


@torch.no_grad()
def move(engine: Any, part: str) -> None:
    """Train a part of the policy, so to speak."""
    tiny.stir({name: weight for name, weight in engine.policy.model.named_parameters() if part in name}, 5)


def test_a_right_sync_is_proven(engine: Any) -> None:
    for part in ("visual", "layers.0", "embed_tokens"):
        move(engine, part)
        engine.sync()
    assert gap(engine.policy, engine.generate(prompts(), SAMPLING, SEEDS)) < 1e-3


@pytest.mark.parametrize(
    "name", ["self_attn.k_proj.weight", "input_layernorm.weight", "self_attn.q_proj.bias"]
)
def test_a_corrupted_parameter_is_caught_and_named(engine: Any, on_the_way: Any, name: str) -> None:
    engine.sync()
    wrong = f"{LAYER}.{name}"
    on_the_way(lambda weights: ((n, -w - 0.5 if n == wrong else w) for n, w in weights))
    with pytest.raises(
        RuntimeError, match=rf"differ from the policy's .* other values of 1 weights: {wrong}"
    ):
        engine.sync()


def test_swapped_names_are_caught_and_both_named(engine: Any, on_the_way: Any) -> None:
    engine.sync()
    gate, up = f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"
    swapped = {gate: up, up: gate}
    on_the_way(lambda weights: ((swapped.get(n, n), w) for n, w in weights))
    with pytest.raises(RuntimeError, match=f"other values of 2 weights: {gate}, {up}"):
        engine.sync()


def test_features_of_an_older_tower_are_caught(
    engine: Any, on_the_way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.sync()
    monkeypatch.setattr(engine.llm.llm_engine, "reset_encoder_cache", lambda: None)
    move(engine, "visual")
    with pytest.raises(
        RuntimeError, match="all of its weights are the policy's, so something computed with older"
    ):
        engine.sync()


def test_frames_that_are_lost_on_the_way_are_caught(
    engine: Any, on_the_way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number is right, so the prompt's tokens are."""
    pixels = engine.inputs._pixels
    monkeypatch.setattr(engine.inputs, "_pixels", lambda clip: 0 * pixels(clip))
    with pytest.raises(
        RuntimeError, match="all of its weights are the policy's, .* or it computes otherwise"
    ):
        engine.sync()


def test_names_that_one_side_does_not_know_are_an_error_that_names_them(engine: Any, on_the_way: Any) -> None:
    engine.sync()
    # vLLM itself would pass over a bias that it does not know.
    odd, lost = f"{LAYER}.mlp.up_proj.bias", f"{LAYER}.self_attn.o_proj.weight"
    on_the_way(lambda weights: ((odd if n == lost else n, w) for n, w in weights))
    for known in (engine.weights.fills, {}):
        engine.weights.fills = known
        with pytest.raises(
            ValueError, match=f"unknown to the engine: {odd}; not given .*layers.1.*o_proj.weight"
        ):
            engine.sync()
    engine.weights.fills = {}


def test_prefixes_that_vllm_keeps_are_an_error(
    engine: Any, on_the_way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="keeps prefixes of older weights"):
        engine.sync()


def test_there_is_a_proof_of_the_first_syncs_and_then_of_every_so_many() -> None:
    policy, asked = tiny.policy(), []
    proof = proof_of(policy)
    proof.every = 5

    def ask(*_: Any) -> Any:
        asked.append(proof.num_syncs)
        raise StopIteration

    for _ in range(12):
        try:
            proof.after_sync(ask, list)
        except StopIteration:
            continue
    assert asked == [*range(1, ALWAYS_FIRST + 1), 5, 10]


def test_adapters_are_sampled_with_and_each_version_takes_the_place_of_the_last(adapter_engine: Any) -> None:
    engine = adapter_engine
    for seed in (4, 5):
        tiny.stir(adapters_of(engine), seed)
        assert gap(engine.policy, engine.generate(prompts(), SAMPLING, SEEDS)) > 1e-2
        engine.sync()
        assert gap(engine.policy, engine.generate(prompts(), SAMPLING, SEEDS)) < 1e-3
        assert engine.llm.llm_engine.list_loras() == {engine.adapters.version}
    assert not Path(engine.adapter.lora_path).exists()


@pytest.mark.parametrize("part", ["visual", "language_model"])
def test_an_adapter_that_is_dropped_on_the_way_is_named(
    adapter_engine: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from grpo.rollout import vllm_weights

    save = vllm_weights.save_adapters
    lost = next(name for name in adapters_of(adapter_engine) if part in name and "proj.lora_A" in name)
    layer = lost.removeprefix("model.").partition(".lora_A")[0]

    def losing(folder: Any, model: Any, weights: dict[str, Tensor], base: str) -> None:
        save(folder, model, {n: w for n, w in weights.items() if layer not in n}, base)

    monkeypatch.setattr(vllm_weights, "save_adapters", losing)
    end = layer.rpartition(f"{part}.")[2]
    with pytest.raises(ValueError, match=f"not given to the engine: {part}.*{end}$"):
        adapter_engine.sync()
    monkeypatch.undo()
    adapter_engine.sync()


def test_adapters_that_the_engine_ignores_are_caught(
    adapter_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = adapter_engine
    inner = engine.llm.llm_engine
    add = inner.add_request
    monkeypatch.setattr(inner, "add_request", lambda *asked, lora_request: add(*asked))
    with pytest.raises(RuntimeError, match="all of its weights are the policy's"):
        engine.sync()
    # Too small to be beyond the limit, and still not to be lost.
    engine.proof.max_gap = 1.0
    with pytest.raises(
        RuntimeError, match="ignores the policy's adapters: they change the policy's log-probs by"
    ):
        engine.sync()
    engine.proof.max_gap = 2e-3
    monkeypatch.undo()
    engine.sync()


def test_corrupted_adapters_are_named(adapter_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo.rollout import vllm_weights

    save = vllm_weights.save_adapters
    wrong = next(name for name in adapters_of(adapter_engine) if "layers.1.mlp.down_proj.lora_B" in name)

    def corrupting(folder: Any, model: Any, weights: dict[str, Tensor], base: str) -> None:
        name = wrong.removeprefix("model.")
        save(folder, model, {**weights, name: weights[name] + 0.3}, base)

    monkeypatch.setattr(vllm_weights, "save_adapters", corrupting)
    with pytest.raises(RuntimeError, match=r"of 1 weights: language_model\.model\.layers\.1\.mlp\.down_proj"):
        adapter_engine.sync()
    monkeypatch.undo()
    adapter_engine.sync()
