"""Both engines: what they sampled has the log-probs that the learner computes, before and after a sync."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from grpo.commands.doctor.engine_memory import BLOCK_TOKENS, cache_bytes, encoder_tokens
from grpo.groups import Group, Prompt, ScoredGroup, clips_of
from grpo.policy import uploads
from grpo.policy.model import Policy
from grpo.rollout import Engine, Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from tests.rollout.long_prompt import config_for, long_sample, off_by, prompt_of
from tests.support import tiny
from tests.support.learners import packed

TEMPERATURE = 0.9
SAMPLING = Sampling(group_size=4, max_new_tokens=20, temperature=TEMPERATURE)
SEEDS = list(range(100, 106))


def prompts() -> list[Prompt]:
    """Of several lengths and grids, one without a clip, two of equal length."""
    return [scored.group.prompt for scored in tiny.ragged_groups()]


def gap(policy: Policy, groups: list[Group]) -> float:
    """The largest difference between the engine's and the learner's log-probs."""
    ones = [ScoredGroup(group=group, table=tiny.table((1.0,) * 4), advantages=(1.0,) * 4) for group in groups]
    rows = packed(ones, tokens_per_row=1500)
    with torch.no_grad():
        return max(float((policy(row).logps_T - row.sampler_logps_T).abs().max()) for row in rows)


def tokens(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


ENGINES = (
    "qwen2_vl vllm", "qwen2_5_vl vllm", "qwen2_5_vl transformers",
    "qwen3_vl vllm", "qwen3_vl transformers", "qwen3_vl_untied vllm",
)  # fmt: skip


@pytest.fixture(scope="module", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine's name; until it is closed, the tiny model is of the family named before it."""
    family, _, name = request.param.partition(" ")
    with tiny.of_family(family):
        yield name


@pytest.fixture(scope="module")
def policy(engine_name: str) -> Policy:
    return tiny.policy(temperature=TEMPERATURE)


@pytest.fixture(scope="module")
def engine(engine_name: str, policy: Policy) -> Iterator[Engine]:
    if engine_name == "transformers":
        yield TransformersEngine(policy, max_sequences=8)
        return
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    started = vllm_engine(policy)
    yield started
    started.close()


def test_a_group_has_g_rollouts_with_a_log_prob_per_token(engine: Engine) -> None:
    groups = engine.generate(prompts(), SAMPLING, SEEDS)
    assert [group.prompt.token_ids for group in groups] == [prompt.token_ids for prompt in prompts()]
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        assert 1 <= len(rollout.token_ids) <= 20
        assert rollout.stopped == (rollout.token_ids[-1] in tiny.family().eos_ids)
        assert "<|im_end|>" not in rollout.text
    assert all(len(set(row)) > 1 for row in tokens(groups))  # the members of a group differ


def test_vllm_is_asked_once_per_prompt_for_a_whole_group(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(engine, TransformersEngine):
        pytest.skip("of vLLM alone: the transformers engine has no requests")
    inner = cast(Any, engine).llm.llm_engine
    asked, add = [], inner.add_request

    def watched(number: str, inputs: Any, parameters: Any, **options: Any) -> str:
        asked.append((inputs, parameters))
        return add(number, inputs, parameters, **options)

    monkeypatch.setattr(inner, "add_request", watched)
    groups = engine.generate(prompts(), SAMPLING, SEEDS)
    assert sorted((parameters.n, parameters.seed) for _, parameters in asked) == [(4, seed) for seed in SEEDS]
    by_seed = sorted(asked, key=lambda pair: pair[1].seed)
    assert [len(request.get("mm_kwargs", {})) for request, _ in by_seed] == [1, 1, 1, 1, 0, 1]
    # The longest prompts first.
    lengths = [len(prompts()[SEEDS.index(parameters.seed)].token_ids) for _, parameters in asked]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(group.rollouts) for group in groups] == [4] * 6


def test_whole_completions_match_a_regex_by_vllm_and_the_other_engine_refuses_it(engine: Engine) -> None:
    asked = replace(SAMPLING, regex="(yes|no), [0-9]{2}")
    if isinstance(engine, TransformersEngine):
        with pytest.raises(ValueError, match="regex: the transformers engine has no structured output"):
            engine.generate(prompts()[:1], asked, SEEDS[:1])
        return
    [group] = engine.generate(prompts()[:1], asked, SEEDS[:1])
    assert all(re.fullmatch(asked.regex, rollout.text) and rollout.stopped for rollout in group.rollouts)


def test_a_clips_patches_are_made_once_in_a_step_for_engine_and_learner(
    engine: Engine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real, asked = [], uploads.uploaded, prompts()
    monkeypatch.setattr(uploads, "uploaded", lambda clip, device: made.append(clip) or real(clip, device))
    engine.prepare(asked, step=1)
    groups = engine.generate(asked, SAMPLING, SEEDS)
    assert gap(policy, groups) < 1e-3 and gap(policy, groups) < 1e-3
    assert Counter(made) == Counter(clips_of(asked)) and len(made) == 5
    policy.uploads.clear(1)


def test_the_learners_log_probs_equal_the_engines(engine: Engine, policy: Policy) -> None:
    assert gap(policy, engine.generate(prompts(), SAMPLING, SEEDS)) < 1e-3


def test_clips_of_one_two_and_five_patches_are_to_the_engine_what_they_are_to_the_learner(
    engine: Engine, policy: Policy
) -> None:
    clips = [tiny.clip(2, fps=0.5), tiny.clip(4, width_px=84), tiny.clip(10, 84, fps=0.31)]
    asked = [tiny.prompt(tiny.sample(), clip) for clip in clips]
    groups = engine.generate(asked, SAMPLING, SEEDS[:3])
    assert [group.prompt.token_ids for group in groups] == [prompt.token_ids for prompt in asked]
    assert gap(policy, groups) < 1e-3


def test_several_media_are_to_the_engine_what_they_are_to_the_learner(engine: Engine, policy: Policy) -> None:
    asked = [tiny.media_prompt(kinds) for kinds in tiny.SEVERAL.values()]
    groups = engine.generate(asked, SAMPLING, SEEDS[:4])
    assert [group.prompt.token_ids for group in groups] == [prompt.token_ids for prompt in asked]
    assert all(rollout.media == group.prompt.media for group in groups for rollout in group.rollouts)
    assert gap(policy, groups) < 1e-3


def test_the_same_seed_gives_the_same_group_in_another_batch(engine: Engine) -> None:
    whole = tokens(engine.generate(prompts(), SAMPLING, SEEDS))
    part = tokens(engine.generate(prompts()[3:1:-1], SAMPLING, SEEDS[3:1:-1]))
    assert part == [whole[3], whole[2]]
    assert tokens(engine.generate(prompts(), SAMPLING, [seed + 50 for seed in SEEDS])) != whole


def test_each_group_is_told_of_once_and_the_first_while_others_are_sampled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(engine, monkeypatch)
    told: list[tuple[Group, int]] = []
    uneven = replace(SAMPLING, group_size=1, max_new_tokens=60)
    groups = engine.generate(
        prompts(), uneven, SEEDS, on_group=lambda group: told.append((group, len(passes)))
    )
    assert len({len(group.rollouts[0].token_ids) for group in groups}) > 1
    assert told[0][1] < len(passes)  # the engine goes on behind it
    assert sorted(id(group) for group, _ in told) == sorted(id(group) for group in groups)


def count_passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with every step of vLLM's scheduler, or every batch of the transformers engine."""
    passes: list[None] = []
    if isinstance(engine, TransformersEngine):
        owner, name = engine, "_decode"
    else:
        owner, name = cast(Any, engine).llm.llm_engine, "step"
    one_pass = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        passes.append(None)
        return one_pass(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return passes


def test_greedy_takes_the_likeliest_token(engine: Engine, policy: Policy) -> None:
    greedy = Sampling(group_size=1, max_new_tokens=5, temperature=0.0)
    other = TransformersEngine(policy)
    assert tokens(engine.generate(prompts(), greedy, SEEDS)) == tokens(
        other.generate(prompts(), greedy, SEEDS)
    )


def test_vision_pad_tokens_are_never_sampled(engine: Engine, policy: Policy) -> None:
    embeddings = policy.model.get_output_embeddings().weight
    before = embeddings.detach().clone()
    with torch.no_grad():  # likelier than any word wherever the turn may end
        embeddings[list(tiny.family().suppressed_ids)] = 3 * embeddings[tiny.family().eos_ids[0]]
    engine.sync()
    sampled = {
        token
        for group in engine.generate(prompts(), SAMPLING, SEEDS)
        for r in group.rollouts
        for token in r.token_ids
    }
    assert not sampled & set(tiny.family().suppressed_ids)
    with torch.no_grad():
        embeddings.copy_(before)
    engine.sync()


def test_a_completion_ends_at_a_text_and_keeps_it_with_exact_log_probs(
    engine: Engine, policy: Policy
) -> None:
    free = engine.generate(prompts(), SAMPLING, SEEDS)
    # Of several tokens that a completion goes on behind, if nothing stops it.
    long = max((rollout for group in free for rollout in group.rollouts), key=lambda one: len(one.token_ids))
    text = tiny.family().decode(long.token_ids[5:8])
    groups = engine.generate(prompts(), replace(SAMPLING, stop=("never said", text)), SEEDS)
    pairs = [
        (before, now)
        for one, other in zip(free, groups, strict=True)
        for before, now in zip(one.rollouts, other.rollouts, strict=True)
    ]
    for before, now in pairs:
        assert now.token_ids == before.token_ids[: len(now.token_ids)]
        assert (text in now.text) == (text in before.text)
        if text in now.text:
            # What precedes the last token does not have it yet.
            assert now.stopped and text not in tiny.family().decode(now.token_ids[:-1])
    assert any(len(now.token_ids) < len(before.token_ids) for before, now in pairs)
    assert gap(policy, groups) < 1e-3


def test_no_prompts_give_no_groups(engine: Engine) -> None:
    assert engine.generate([], SAMPLING, []) == []


PARTS: dict[str, Callable[[str], bool]] = {
    "vision tower": lambda name: "visual" in name,
    "mergers": lambda name: "merger" in name,
    "attention": lambda name: "language_model" in name and "self_attn" in name,
    "mlp": lambda name: "language_model" in name and "mlp" in name,
    "norms": lambda name: "language_model" in name and "norm" in name,
    "embeddings and head": lambda name: "embed_tokens" in name or "lm_head" in name,
}


@pytest.mark.parametrize("part", PARTS)
def test_after_a_sync_of_changed_weights_log_probs_agree_again(
    engine: Engine, policy: Policy, part: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    changed = [weight for name, weight in policy.model.named_parameters() if PARTS[part](name)]
    assert changed
    with torch.no_grad():
        for weight in changed:
            weight *= 1 + 0.1 * torch.randn(weight.shape, generator=generator)
    if not isinstance(engine, TransformersEngine):
        assert gap(policy, engine.generate(prompts(), SAMPLING, SEEDS)) > 1e-3  # the change is visible
    engine.sync()
    assert gap(policy, engine.generate(prompts(), SAMPLING, SEEDS)) < 1e-3


def test_a_clip_of_many_tokens_is_planned_decoded_and_sampled_about(
    engine: Engine, policy: Policy, tmp_path: Path
) -> None:
    config = config_for(1600, 2048)
    prompt = prompt_of(config, long_sample(tmp_path, config.media.max_frames))
    assert len(prompt.token_ids) > 1200
    (group,) = engine.generate([prompt], SAMPLING, [7])
    assert off_by(policy, group, 2048) < 1e-3


def test_the_doctor_counts_what_vllm_makes_room_for(engine: Engine, policy: Policy) -> None:
    """The largest item that it encodes, and the keys and values of a sequence."""
    if isinstance(engine, TransformersEngine):
        return
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    inside, family = cast(Any, engine), policy.family
    config = inside.llm.llm_engine.vllm_config
    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY, enable_cache=False)
    largest = max(budget.mm_max_toks_per_item.values())
    # Of Qwen3-VL's largest video there are two frames.
    assert encoder_tokens(family, 2048, 1) >= largest
    if "qwen3" not in config.model_config.hf_config.model_type:
        assert encoder_tokens(family, 2048, 1) == largest
    assert encoder_tokens(family, 2048, 16_384) == budget.get_encoder_budget() == 16_384
    specs = inside.weights.worker.get_kv_cache_spec().values()
    in_fp32 = sum(spec.max_memory_usage_bytes(config) for spec in specs)
    # One block more is held back.
    assert 2 * (cache_bytes(family, 2048, 1) - cache_bytes(family, BLOCK_TOKENS, 1) / 2) == in_fp32
