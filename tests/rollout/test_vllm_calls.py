"""The calls that vLLM gets on a GPU, pinned with a stand-in for it: arguments, order of waking, a batch left over."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.config.load import load_config
from grpo.groups import Prompt
from grpo.policy.model import Policy
from grpo.rollout import Sampling, vllm_engine
from grpo.rollout.vllm_arguments import EngineSize, engine_arguments
from grpo.rollout.vllm_engine import VLLMEngine
from grpo.startup import assembly
from tests.support import tiny

vllm = pytest.importorskip("vllm")

SAMPLING = Sampling(group_size=1, max_new_tokens=4, temperature=1.0)


class FakeModel(torch.nn.Module):
    """Takes weights by the policy's own names."""

    def __init__(self, policy: Policy, calls: list[Any]) -> None:
        super().__init__()
        self.names = [name for name, _ in policy.named_weights()]
        self.calls = calls

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return ((name, None) for name in self.names)

    def load_weights(self, weights: Any) -> set[str]:
        found = {name: weight.dtype for name, weight in weights}
        if not self.calls or self.calls[-1] != "load":
            self.calls.append("load")
        assert set(found.values()) == {torch.bfloat16}
        return found.keys() & set(self.names)


class FakeLLM:
    """Notes what it is asked, and answers a request in its second step."""

    calls: list[Any]
    policy: Policy

    def __init__(self, path: str, **arguments: Any) -> None:
        self.arguments = arguments
        self.waiting: deque[tuple[str, list[int]]] = deque()
        self.batches: deque[str] = deque()
        model = FakeModel(self.policy, self.calls)
        worker = SimpleNamespace(get_model=lambda: model, vllm_config=None)
        self.asleep: set[str] = set()
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(worker=worker)),
            engine_core=SimpleNamespace(
                engine_core=SimpleNamespace(batch_queue=self.batches), shutdown=lambda: None
            ),
            has_unfinished_requests=lambda: bool(self.waiting),
            is_sleeping=lambda: bool(self.asleep),
            add_request=self.add_request,
            reset_encoder_cache=lambda: self.calls.append("reset encoder"),
            reset_mm_cache=lambda: self.calls.append("reset inputs"),
            step=self.step,
        )

    def add_request(self, number: str, inputs: dict[str, Any], parameters: Any, **_: Any) -> None:
        self.calls.append(("add", len(inputs["prompt_token_ids"])))
        self.waiting.append((number, inputs["prompt_token_ids"]))

    def step(self) -> list[Any]:
        self.calls.append("step")
        if not self.waiting:
            self.batches.clear()
            return []
        number, prompt_ids = self.waiting.popleft()
        self.batches.append("what async scheduling began")
        end = tiny.family().eos_ids[0]
        completion = SimpleNamespace(
            token_ids=[end], logprobs=[{end: SimpleNamespace(logprob=-0.5)}], finish_reason="stop"
        )
        return [
            SimpleNamespace(
                finished=True, request_id=number, prompt_token_ids=prompt_ids, outputs=[completion]
            )
        ]

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset prefixes")
        return True

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))
        self.asleep |= {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))
        self.asleep -= set(tags)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    """The engine as it is on a GPU, of bf16 and with sleep."""
    policy = tiny.policy()
    FakeLLM.calls, FakeLLM.policy = [], policy
    monkeypatch.setattr(vllm, "LLM", FakeLLM)
    monkeypatch.setattr("vllm.config.set_current_vllm_config", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    size = EngineSize(max_model_tokens=4096, gpu_memory_frac=0.3, max_clip_tokens=16_384)
    engine = VLLMEngine(policy, seed=0, size=size, dtype=torch.bfloat16, sleep=True)
    monkeypatch.undo()
    monkeypatch.setattr("vllm.config.set_current_vllm_config", lambda _: nullcontext())
    return engine


def test_a_sleeping_engine_wakes_for_its_weights_first_and_for_its_cache_after_them(
    on_gpu: VLLMEngine,
) -> None:
    on_gpu.sync()
    FakeLLM.calls.clear()
    on_gpu.sleep()
    on_gpu.sync()
    assert FakeLLM.calls == [
        ("sleep", 2), ("wake", "weights"), "load", ("wake", "kv_cache"),
        "reset prefixes", "reset encoder", "reset inputs",
    ]  # fmt: skip
    FakeLLM.calls.clear()
    on_gpu.sync()
    assert FakeLLM.calls == ["load", "reset prefixes", "reset encoder", "reset inputs"]


def test_what_a_sleep_left_in_a_models_vision_states_is_emptied(on_gpu: VLLMEngine) -> None:
    model = on_gpu.weights.worker.get_model()
    on_gpu.sync()
    for is_asleep, expected in ((False, 7.0), (True, 0.0)):
        model.deepstack_input_embeds = [torch.full((4, 2), 7.0) for _ in range(3)]
        if is_asleep:
            on_gpu.sleep()
        on_gpu.sync()
        assert all((states == expected).all() for states in model.deepstack_input_embeds)


def test_prompts_are_added_as_their_inputs_are_ready_the_longest_first_and_no_batch_is_left(
    on_gpu: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Where?", "Where is the cup that was red?", "Where is the cup?"]
    prompts = [tiny.prompt(tiny.sample(question=text), None) for text in texts]
    lengths = sorted((len(prompt.token_ids) for prompt in prompts), reverse=True)
    # The second one's are not there when it is looked for first.
    ready = iter([True, False, True, True])
    monkeypatch.setattr(on_gpu.inputs, "is_ready", lambda _: next(ready))
    groups = on_gpu.generate(prompts, SAMPLING, [0, 1, 2])
    added = [("add", length) for length in lengths]
    # The last step is that of the batch behind the end.
    assert FakeLLM.calls == [added[0], "step", *added[1:], "step", "step", "step"]
    assert [group.prompt for group in groups] == prompts


def test_inputs_of_a_few_prompts_are_kept_at_a_time_and_each_is_made_once(
    on_gpu: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [tiny.clip(seed=seed) for seed in range(12)]
    # The last prompt is about the first one's clip.
    prompts = [tiny.prompt(tiny.sample(), clip) for clip in [*clips, clips[0]]]
    inputs, begun, kept = on_gpu.inputs, [], []

    def of(prompt: Prompt) -> Any:
        assert prompt.clip is not None
        inputs._made[prompt.clip].result()
        kept.append(len(inputs._made))
        return {"prompt_token_ids": [*prompt.token_ids]}

    monkeypatch.setattr(inputs, "of", of)
    monkeypatch.setattr(inputs, "_of_clip", begun.append)
    groups = on_gpu.generate(prompts, SAMPLING, range(len(prompts)))
    assert [group.prompt for group in groups] == prompts
    # Those that are ahead, and what the last one needs.
    assert max(kept) <= vllm_engine.BEGUN_PROMPTS + 1 and kept[-1] == 1
    assert begun == clips and not inputs._made


def test_processes_that_share_an_engine_step_alike_whoever_has_a_clip_first(
    on_gpu: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tiny.prompt(tiny.sample(question=text), None) for text in ("Where?", "Where is it?")]
    on_gpu.tensor_parallel_size = 2
    monkeypatch.setattr(vllm_engine, "_shared", lambda requests: (requests, 0))
    monkeypatch.setattr(on_gpu.inputs, "is_ready", lambda _: False)
    on_gpu.generate(prompts, SAMPLING, [0, 1])
    assert [call[0] for call in FakeLLM.calls[:3]] == ["add", "add", "s"]


def test_weights_below_adapters_sleep_in_main_memory(on_gpu: VLLMEngine) -> None:
    on_gpu.adapters = SimpleNamespace(load=lambda policy: FakeLLM.calls.append("adapters"))  # pyright: ignore
    FakeLLM.calls.clear()
    on_gpu.sleep()
    on_gpu.sync()
    assert FakeLLM.calls[:4] == [("sleep", 1), ("wake", "weights"), "adapters", ("wake", "kv_cache")]


SIZE = EngineSize(max_model_tokens=32_768, gpu_memory_frac=0.4, max_sequences=512, max_clip_tokens=16_384)


def test_the_gpus_arguments_have_room_for_the_largest_clip_and_a_steps_completions() -> None:
    found = engine_arguments(SIZE, on_gpu=True, launched=False, sleeps=True)
    assert found["max_num_batched_tokens"] == 16_384 and found["max_num_seqs"] == 512
    assert found["enable_sleep_mode"] and found["gpu_memory_utilization"] == 0.4
    # CUDA graphs, prefix cache and chunked prefill are vLLM's defaults.
    assert not found.keys() & {"enforce_eager", "enable_prefix_caching", "enable_chunked_prefill"}
    assert "distributed_executor_backend" not in found and "enable_lora" not in found


def test_launched_processes_share_engines_as_they_are_told() -> None:
    size = EngineSize(max_model_tokens=512, gpu_memory_frac=0.4, tensor_parallel_size=2, timeout_s=14_400)
    found = engine_arguments(size, on_gpu=True, launched=True, sleeps=False)
    # Else they wait for ten minutes, which is less than a checkpoint of one of them may take.
    assert found["distributed_timeout_seconds"] == found["cpu_distributed_timeout_seconds"] == 14_400
    assert found["distributed_executor_backend"] == "external_launcher" and found["tensor_parallel_size"] == 2


def test_vllm_knows_all_arguments_of_a_gpu() -> None:
    known = fields(pytest.importorskip("vllm.engine.arg_utils").EngineArgs)
    size = replace(
        SIZE, tensor_parallel_size=2, timeout_s=60, fp32_head=True, lora_rank=8, lora_in_tower=True
    )
    found = engine_arguments(size, on_gpu=True, launched=True, sleeps=True)
    assert {*found} <= {each.name for each in known}


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (64, 64), (65, 128)])
def test_adapters_get_the_next_rank_that_vllm_has(rank: int, room: int) -> None:
    size = EngineSize(max_model_tokens=512, gpu_memory_frac=0.4, lora_rank=rank, lora_in_tower=True)
    found = engine_arguments(size, on_gpu=True, launched=False, sleeps=False)
    assert found["max_lora_rank"] == room and found["enable_tower_connector_lora"] and found["max_loras"] == 1


@pytest.mark.parametrize(
    ("settings", "in_16_bits", "in_32_bits"),
    [
        ([], False, False),
        (["model.lora.r=8"], True, False),
        (["model.lora.r=600"], False, False),
        (["model.lora.r=8", "model.load_in_4bit=true"], False, False),
        (["model.lora.r=8", "rollout.lora=merge"], False, False),
        (["model.lora.r=8", "rollout.lora=adapters"], True, True),
        (["model.lora.r=8", "rollout.engine=vllm_process"], False, False),
    ],
)
def test_adapters_stay_beside_the_weights_where_a_merge_would_round_and_vllm_can(
    settings: list[str], in_16_bits: bool, in_32_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *settings])
    for dtype, expected in ((torch.bfloat16, in_16_bits), (torch.float32, in_32_bits)):
        monkeypatch.setattr(assembly, "compute_dtype", lambda dtype=dtype: dtype)
        assert assembly.adds_adapters(config) == expected
