"""What the engines of this process do when something is wrong with memory, prompts, features or weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from grpo.groups import Group
from grpo.policy.model import Policy
from grpo.rollout import Engine, Sampling
from grpo.rollout.concurrency import Concurrency
from grpo.rollout.transformers_engine import TransformersEngine
from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, gap, prompts, tokens
from tests.support import tiny

ROOM_TOKENS = 400
"""The tokens of vLLM's prompt and completion together; the longest prompt has more."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny.policy(temperature=TEMPERATURE)


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest, policy: Policy) -> Iterator[Engine]:
    if request.param == "transformers":
        yield TransformersEngine(policy)
        return
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    started = vllm_engine(policy, max_model_tokens=ROOM_TOKENS)
    yield started
    started.close()


SHORT = [index for index, prompt in enumerate(prompts()) if len(prompt.token_ids) < ROOM_TOKENS - 100]


def sampled(engine: Engine, told: list[Group] | None = None) -> list[Group]:
    on_group = told.append if told is not None else None
    own = [SEEDS[index] for index in SHORT]
    return engine.generate([prompts()[index] for index in SHORT], SAMPLING, own, on_group=on_group)


def fails_in_pass(
    engine: Engine, number: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Let the engine's language model raise an error in a pass; returns how many completions are at work in each."""
    passes: list[int] = []
    if isinstance(engine, TransformersEngine):
        model, scheduler = engine.sampler.model.model.language_model, None
    else:
        inside = cast(Any, engine)
        model = inside.weights.worker.get_model().language_model.model
        scheduler = inside.llm.llm_engine.engine_core.engine_core.scheduler
    forward = model.forward

    def failing(*arguments: Any, **named: Any) -> Any:
        passes.append(len(scheduler.running) if scheduler else len(named["inputs_embeds"]))
        if len(passes) == number:
            raise error
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", failing)
    return passes


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("number", [1, 7])
def test_an_engine_without_enough_memory_goes_on_with_half_as_many_completions(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    whole = sampled(engine)
    monkeypatch.setattr(engine, "concurrency", Concurrency(256))
    passes, told = fails_in_pass(engine, number, out_of_memory(), monkeypatch), list[Group]()
    with caplog.at_level(logging.WARNING):
        again = sampled(engine, told)
    halved = cast(Any, engine).concurrency.most
    assert tokens(again) == tokens(whole)
    assert sorted(map(id, told)) == sorted(map(id, again))
    assert sum(f"out of memory; from here on at most {halved} completions" in m for m in caplog.messages) == 1
    assert max(passes[number:]) <= halved < 4 * len(SHORT)


def test_an_engine_that_lacks_memory_twice_or_fails_otherwise_ends_the_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "concurrency", Concurrency(256, is_halved=True))
    fails_in_pass(engine, 3, out_of_memory(), monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        sampled(engine)
    # What it was asked then is no part of what it is asked next.
    monkeypatch.undo()
    assert len(sampled(engine)) == len(SHORT)


def test_what_lacks_memory_is_told_from_what_is_wrong() -> None:
    held = Concurrency(256)
    with pytest.raises(RuntimeError, match="device-side assert"):
        held.halve(RuntimeError("CUDA error: device-side assert triggered"), 64)
    assert (held.most, held.is_halved) == (256, False)
    held.halve(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 64)
    assert (held.most, held.is_halved) == (32, True)


def test_a_prompt_that_the_engine_has_no_room_for_is_an_error_and_cut_by_none(engine: Engine) -> None:
    """A run with such a prompt does not start; this is what is behind that."""
    if isinstance(engine, TransformersEngine):
        pytest.skip("of vLLM alone: the transformers engine makes room as it goes")
    longest = max(prompts(), key=lambda prompt: len(prompt.token_ids))
    with pytest.raises(
        ValueError, match=f"sample {longest.sample.id}: its prompt has .* tokens, and vLLM room for 400"
    ):
        engine.generate([longest], SAMPLING, SEEDS[:1])
    assert len(sampled(engine)) == len(SHORT)


def test_a_clip_that_is_lost_on_the_way_stops_the_run(
    engine: Engine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = next(prompt for prompt in prompts() if prompt.clip is not None)
    at = prompt.token_ids.index(tiny.family().config.video_token_id)
    fewer = replace(prompt, token_ids=prompt.token_ids[:at] + prompt.token_ids[at + 1 :])
    with pytest.raises(ValueError, match=f"sample {prompt.sample.id} .*vision tokens for"):
        engine.generate([fewer], SAMPLING, SEEDS[:1])
    if isinstance(engine, TransformersEngine):
        return
    inputs = cast(Any, engine).inputs
    without = {"type": "token", "prompt_token_ids": tiny.family().folded_ids(prompt)}
    monkeypatch.setattr(inputs, "of", lambda prompt: without)
    with pytest.raises(ValueError, match=f"sample {prompt.sample.id}: vLLM sampled behind a prompt of"):
        engine.generate([prompt], SAMPLING, SEEDS[:1])
    monkeypatch.undo()
    # Other pixels than those of vLLM's own processor, which sees the first clip of an engine too.
    inputs._compared.clear()
    [clip] = prompt.clips
    policy.uploads.expect([clip], policy.device, step=1)
    policy.uploads.get(clip, policy.device)[0, 0] += 1
    with pytest.raises(ValueError, match=f"sample {prompt.sample.id}: .* other inputs .* mm_kwargs"):
        engine.generate([prompt], SAMPLING, SEEDS[:1])
    policy.uploads.clear(1)
    assert len(engine.generate([prompt], SAMPLING, SEEDS[:1])) == 1


def test_weights_that_are_no_numbers_stop_the_run(engine: Engine, policy: Policy) -> None:
    norm = policy.model.model.language_model.norm.weight
    before = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(float("nan"))
    engine.sync()
    with pytest.raises(
        ValueError, match="sample s0: the engine's log-probs are not finite; are the weights?"
    ):
        engine.generate(prompts()[:1], replace(SAMPLING, max_new_tokens=3), SEEDS[:1])
    with torch.no_grad():
        norm.copy_(before)
    engine.sync()
    assert gap(policy, sampled(engine)) < 1e-3


@pytest.fixture
def head(engine: Engine, policy: Policy) -> Iterator[dict[str, torch.Tensor]]:
    """The weights that choose the next token, to be changed; afterwards both sides have the old ones again."""
    model = policy.model
    weights = {"norm": model.model.language_model.norm.weight, "tokens": model.get_output_embeddings().weight}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        yield weights
        for name, weight in weights.items():
            weight.copy_(before[name])
    engine.sync()


def test_completions_without_end_are_cut_in_a_character_too_and_keep_their_tokens(
    engine: Engine, policy: Policy, head: dict[str, torch.Tensor]
) -> None:
    """All tokens are as likely as each other, and most of this vocabulary are single bytes."""
    head["norm"].zero_()
    engine.sync()
    groups = sampled(engine)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    endless = [rollout for rollout in rollouts if not rollout.stopped]
    assert len(endless) > len(rollouts) / 2
    assert {len(rollout.token_ids) for rollout in endless} == {SAMPLING.max_new_tokens}
    assert any(rollout.text.endswith("\ufffd") for rollout in endless)
    # The text does not tell its tokens any more, and they are what is trained on.
    encode = tiny.family().processor.tokenizer.encode
    assert any(tuple(encode(rollout.text)) != rollout.token_ids for rollout in endless)
    assert gap(policy, groups) < 1e-3


def test_an_empty_completion_is_its_end_and_has_a_log_prob(
    engine: Engine, policy: Policy, head: dict[str, torch.Tensor]
) -> None:
    greedy = Sampling(group_size=1, max_new_tokens=1, temperature=0.0)
    [group] = engine.generate(prompts()[:1], greedy, SEEDS[:1])
    end, likeliest = tiny.family().eos_ids[0], group.rollouts[0].token_ids[0]
    head["tokens"][end] = 3 * head["tokens"][likeliest]
    engine.sync()
    groups = engine.generate(prompts()[:1], SAMPLING, SEEDS[:1])
    empty = [rollout for rollout in groups[0].rollouts if rollout.token_ids == (end,)]
    assert empty and all(rollout.stopped and rollout.text == "" for rollout in empty)
    assert gap(policy, groups) < 1e-3
