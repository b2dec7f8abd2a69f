"""The proof of sync notices an engine that has other rows of code tokens than the policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from grpo.policy.model import Policy
from grpo.rollout.sync_proof import SyncProof, code_prompts, make_prompt
from grpo.rollout.transformers_engine import TransformersEngine
from tests.support import tiny


@pytest.fixture(scope="module", autouse=True)
def untied() -> Iterator[None]:
    """A grown model whose embedding and head each have rows of their own."""
    with tiny.of_family("qwen3_vl_untied_grown"):
        yield


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny.policy(seed=1)


@pytest.fixture
def engine(policy: Policy) -> TransformersEngine:
    """An engine with a copy of the policy's weights."""
    own = tiny.policy()
    own.load_state_dict(policy.state_dict())
    return TransformersEngine(policy, own=own)


def proof_of(policy: Policy) -> SyncProof:
    return SyncProof(
        policy=policy, prompt=make_prompt(policy.family), dtype=torch.float32, max_gap=1e-3, every=1
    )


def test_an_engine_with_the_policys_rows_passes(policy: Policy, engine: TransformersEngine) -> None:
    proof_of(policy).after_sync(engine.generate, list)


@pytest.mark.parametrize("part", ["codes", "tags"])
@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("layer", ["get_input_embeddings", "get_output_embeddings"])
def test_other_rows_of_a_codecs_tokens_are_noticed(
    policy: Policy, engine: TransformersEngine, layer: str, codec: int, part: str
) -> None:
    vocabulary = policy.family.vocabulary
    assert vocabulary is not None
    tokens = vocabulary.codecs[codec]
    rows = [tokens.open, tokens.close] if part == "tags" else tokens.levels
    weight_VD = getattr(engine.sampler.model, layer)().weight
    with torch.no_grad():
        for each in rows:
            weight_VD[each.start : each.stop] *= -1
    with pytest.raises(RuntimeError, match="log-probs differ from the policy's"):
        proof_of(policy).after_sync(engine.generate, lambda: None)


def test_questions_for_codes_have_codes_of_all_levels_and_end_in_each_codecs_span(policy: Policy) -> None:
    vocabulary, prompt = policy.family.vocabulary, make_prompt(policy.family)
    assert vocabulary is not None
    asked = code_prompts(prompt, vocabulary)
    assert [each.token_ids[-1] for each in asked] == [codec.open_id for codec in vocabulary.codecs]
    for each in asked:
        added = each.token_ids[len(prompt.token_ids) :]
        vocabulary.check(added[:-1])
        # the first and the last code of every level
        for level in (level for codec in vocabulary.codecs for level in codec.levels):
            assert {level.start, level.stop - 1} <= {*added}
