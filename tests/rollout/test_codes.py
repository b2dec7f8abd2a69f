"""Engines sample codes where the rules allow them, from exactly the distribution that the learner computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.codec.allowed_tokens import FORBIDDEN_LOGIT, AllowedTokens
from grpo.groups import Batch, Group, Prompt
from grpo.packing import Segment, build_row
from grpo.policy.model import Policy
from grpo.rollout import Engine, Sampling
from grpo.rollout.partial import PartialRollouts
from grpo.rollout.sync_proof import SyncProof, logps_of, make_prompt
from grpo.rollout.transformers_engine import TransformersEngine, _Sampler
from grpo.rollout.vllm_settings import CODE_RULES
from tests.support import grown, tiny

TEMPERATURE = 0.9
SAMPLING = Sampling(group_size=8, max_new_tokens=30, temperature=TEMPERATURE)


@pytest.fixture(
    scope="module",
    params=["transformers", "vllm", "vllm of qwen3_vl_untied"],
)
def engine_name(request: pytest.FixtureRequest) -> Iterator[str]:
    name, _, family = request.param.partition(" of ")
    with tiny.of_family(f"{family or 'qwen2_5_vl'}_grown"):
        yield name


@pytest.fixture(scope="module")
def policy(engine_name: str) -> Policy:
    policy = tiny.policy(temperature=TEMPERATURE)
    weight_VD, rules = policy.model.lm_head.weight, grown.vocabulary()
    with torch.no_grad():
        # As likely as what the shipped policy begins with, or hardly any completion would have a span.
        first = policy.logits(policy.hidden(row_of(prompts()[0])), torch.zeros(1, dtype=torch.long)).argmax()
        for codec in rules.codecs:
            weight_VD[codec.open_id] = weight_VD[first]
    return policy


@pytest.fixture(scope="module")
def engine(engine_name: str, policy: Policy) -> Iterator[Engine]:
    if engine_name == "transformers":
        yield TransformersEngine(policy, max_sequences=2000)
        return
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    proof = SyncProof(
        policy=policy, prompt=make_prompt(policy.family), dtype=torch.float32, max_gap=2e-3, every=1
    )
    started = vllm_engine(policy, proof=proof)
    started.sync()
    yield started
    started.close()


def prompts() -> list[Prompt]:
    """A question about a clip, one without, and one whose answer begins inside of a span."""
    asked = [tiny.prompt(tiny.sample("clip"), tiny.clip(4)), tiny.prompt(tiny.sample("text"), None)]
    inside = (*asked[1].token_ids, grown.vocabulary().codecs[0].open_id)
    return [*asked, replace(asked[1], token_ids=inside)]


def row_of(prompt: Prompt) -> Any:
    segment = Segment(prompt=prompt, rollouts=(tiny.rollout(prompt, [0]),), advantages=(0.0,))
    return build_row([segment], tiny.family())


def check(groups: list[Group]) -> int:
    """The number of codes in completions, all of which must obey the rules."""
    rules, num_codes = grown.vocabulary(), 0
    for group in groups:
        for rollout in group.rollouts:
            last = group.prompt.token_ids[-1]
            for token in rollout.token_ids:
                assert rules.allows(rules.state_after(last), token), rollout.text
                last = token
            num_codes += len({*rules.token_ids} & {*rollout.token_ids})
    return num_codes


def gap(policy: Policy, groups: list[Group]) -> float:
    """The largest difference between the engine's and the learner's log-probs."""
    sampled = [torch.tensor([v for rollout in group.rollouts for v in rollout.logprobs]) for group in groups]
    return max(
        float((logps_of(policy, group, torch.float32) - logps_T).abs().max())
        for group, logps_T in zip(groups, sampled, strict=True)
    )


def test_completions_obey_the_rules_and_their_log_probs_are_the_learners_before_and_after_a_sync(
    engine: Engine, policy: Policy
) -> None:
    groups = engine.generate(prompts(), SAMPLING, [1, 2, 3])
    assert check(groups) > 30
    assert gap(policy, groups) < 1e-3
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    tiny.stir({name: w for name, w in policy.model.named_parameters() if "visual" not in name}, 5)
    engine.sync()
    moved = engine.generate(prompts(), SAMPLING, [1, 2, 3])
    assert check(moved) > 30 and moved != groups
    assert gap(policy, moved) < 1e-3
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            weight.copy_(before[name])
    engine.sync()


@torch.no_grad()
def test_codes_are_sampled_from_the_policys_distribution_over_what_may_follow(
    engine: Engine, policy: Policy
) -> None:
    prompt, num = prompts()[2], 1000
    once = replace(SAMPLING, group_size=num, max_new_tokens=1)
    (group,) = engine.generate([prompt], once, [7])
    found = Counter(rollout.token_ids[0] for rollout in group.rollouts)
    codes = [*grown.vocabulary().codecs[0].levels[0]]
    assert {*found} <= {*codes}
    row = row_of(prompt)
    hidden_1D = policy.hidden(row)
    # The softmax of the codes' own logits alone.
    logits_V = policy.model.lm_head(hidden_1D)[0] / TEMPERATURE
    for token, p in zip(codes, logits_V[codes].softmax(-1).tolist(), strict=True):
        # five standard deviations of a share
        assert abs(found[token] / num - p) < 5 * (p * (1 - p) / num) ** 0.5 + 1e-9
    (greedy,) = engine.generate([prompt], replace(once, group_size=1, temperature=0.0), [7])
    assert greedy.rollouts[0].token_ids == (codes[int(logits_V[codes].argmax())],)


def test_completions_that_go_on_in_later_steps_obey_the_rules(engine: Engine, policy: Policy) -> None:
    partial = PartialRollouts(sampling=SAMPLING, decode=policy.family.decode, max_tokens=3, max_steps=20)
    asked = prompts()[2:]
    batch = Batch(prompts=tuple(asked), seeds=(4,), places=(0,), lost=())
    none = Batch(prompts=(), seeds=(), places=(), lost=())
    groups: list[Group] = []
    for step in range(1, 12):
        _, done = partial.sample(
            engine, batch if step == 1 else none, step, step, on_group=lambda _: None, on_first=lambda _: None
        )
        groups += done
    assert len(groups) == 1 and max(len(each.token_ids) for each in groups[0].rollouts) > 9
    assert check(groups) > 8
    assert gap(policy, groups) < 1e-3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_forbidden_token_is_not_drawn_at_either_end_of_the_uniform_numbers(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What torch.rand gives in fp32: 0 is among it, and the largest is 1 - 2**-24.
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, uniform))
    once = Sampling(group_size=2, max_new_tokens=1, temperature=1.0)
    logits_BV = torch.full((2, 9), FORBIDDEN_LOGIT)
    logits_BV[0, 2:5] = torch.tensor([0.0, 1.0, 0.5])
    logits_BV[1, [0, 8]] = 0.0
    tokens_B, logps_B = _Sampler(once, [0], range(2)).sample(logits_BV)
    assert tokens_B.tolist() == ([2, 0] if uniform == 0 else [4, 8])
    assert logps_B.min() > -2


def test_both_of_vllms_model_runners_load_the_rules_and_tell_them_the_last_token() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality, _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    config = SimpleNamespace(model_config=SimpleNamespace(model=str(grown.model())))
    motion, action = grown.vocabulary().codecs
    first = _load_logitsprocs_by_fqcns([CODE_RULES])[0](config, torch.device("cpu"), False)  # pyright: ignore
    # Three requests: one that has sampled nothing, one inside of a span, one behind it.
    answers = [[3, motion.open_id], [5, motion.levels[0][1]], [action.close_id]]
    added = [(0, None, [1, 2], []), (1, None, [1], answers[1]), (2, None, [1], answers[2])]
    first.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))  # pyright: ignore
    size = motion.levels[0].stop + 40
    expected = AllowedTokens(grown.vocabulary()).forbid

    def rules_of(last: list[int]) -> torch.Tensor:
        return expected(torch.zeros(len(last), size), torch.tensor(last))

    def applied(rules: Any, count: int, *batch: Any) -> torch.Tensor:
        logits = torch.zeros(count, size)
        # In place: a copy would be as large as all of a batch's logits.
        assert rules.apply(logits, *batch) is logits
        return logits

    assert torch.equal(applied(first, 3), rules_of([2, motion.levels[0][1], action.close_id]))
    # vLLM's lists grow, and its rows move.
    answers[1].append(motion.levels[1][0])
    swap = (1, 2, MoveDirectionality.SWAP)
    first.update_state(BatchUpdate(batch_size=3, removed=[], added=[], moved=[swap]))
    assert torch.equal(applied(first, 3), rules_of([2, action.close_id, motion.levels[1][0]]))

    second = _load_v2_logitsprocs_by_fqcns([CODE_RULES])[0](config, SimpleNamespace())  # pyright: ignore
    assert second.add_request(0, None)  # pyright: ignore
    batch: Any = SimpleNamespace(input_ids=torch.tensor([motion.open_id, 4], dtype=torch.int32))
    assert torch.equal(applied(second, 2, batch), rules_of([motion.open_id, 4]))
