"""The learner's log-probs of a model with codes: of what the rules of its tokens leave, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grpo.config.learner import LossConfig
from grpo.groups import Group
from grpo.policy.model import Policy
from grpo.rollout.given import check_given
from tests.support import grown, tiny
from tests.support.learners import counts_of, packed, updated
from tests.test_packing import by_completion, gradient, plain_logps


@pytest.fixture(autouse=True, params=["qwen2_5_vl_grown", "qwen3_vl_untied_grown"])
def family(request: pytest.FixtureRequest) -> Iterator[None]:
    with tiny.of_family(request.param):
        yield


def moved() -> Policy:
    return tiny.policy(seed=1, temperature=0.8)


def test_packed_log_probs_of_codes_and_their_gradient_equal_those_of_plain_forwards() -> None:
    groups, exact = grown.coded_groups(), moved().double()
    expected = plain_logps(exact, groups)
    weights = torch.linspace(-1, 1, sum(map(len, expected.values())))
    plain = torch.cat([*expected.values()])
    (weights * plain).sum().backward()
    theirs = gradient(exact)
    for tokens_per_row in (1, 100_000):
        policy, found = moved(), dict[tuple[int, ...], Tensor]()
        for row in packed(groups, tokens_per_row=tokens_per_row):
            found |= by_completion(row, policy(row).logps_T)
        ours = torch.cat([found[key] for key in expected])
        (weights * ours).sum().backward()
        torch.testing.assert_close(ours.double(), plain, atol=2e-4, rtol=1e-4)
        own = gradient(policy).double()
        assert float((own - theirs).norm() / theirs.norm()) < 1e-4


def test_the_entropy_is_that_of_the_tokens_that_may_follow() -> None:
    policy, groups = moved(), grown.coded_groups()
    (row,) = packed(groups)
    probs_TV = policy.logits(policy.hidden(row), row.input_ids_N[row.source_T]).softmax(-1)
    rules, before_T = grown.vocabulary(), row.input_ids_N[row.source_T].tolist()
    expected = []
    for probs_V, before in zip(probs_TV, before_T, strict=True):
        state = rules.state_after(before)
        may_V = torch.tensor([rules.allows(state, token) for token in range(len(probs_V))])
        assert (probs_V[~may_V] == 0).all()
        expected.append(torch.distributions.Categorical(probs=probs_V[may_V]).entropy())
    torch.testing.assert_close(policy(row).entropy_T, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_rows_of_what_may_not_follow_get_no_gradient_from_a_code() -> None:
    policy, codec = moved(), grown.vocabulary().codecs[0]
    prompt = tiny.prompt(tiny.sample(), None)
    scored = tiny.ragged_group(prompt, [1], seed=0)
    inside = replace(prompt, token_ids=(*prompt.token_ids, codec.open_id))
    rollout = tiny.rollout(inside, [codec.levels[0][2]])
    (row,) = packed([replace(scored, group=Group(prompt=inside, rollouts=(rollout,)))])
    head = policy.head.output_embeddings()
    hidden_TD = policy.hidden(row).detach()
    policy.head(hidden_TD, row.target_T, row.input_ids_N[row.source_T], True).logps_T.sum().backward()
    moved_rows = head.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert moved_rows == [*codec.levels[0]]


@pytest.mark.parametrize(
    "loss",
    [LossConfig(beta=0.1), LossConfig(top_entropy_quantile=0.5), LossConfig(entropy_coef=0.01)],
    ids=["reference", "top entropy", "entropy"],
)
def test_losses_of_rows_with_codes_do_not_depend_on_the_packing(loss: LossConfig) -> None:
    groups, reference = grown.coded_groups(), tiny.policy()
    outcomes = []
    for tokens_per_row in (1, 100_000):
        policy = moved()
        rows = packed(groups, tokens_per_row=tokens_per_row)
        figures = updated(policy, rows, counts_of(groups), loss=loss, reference=reference)
        outcomes.append((figures["loss"], gradient(policy)))
    (one, first), (other, second) = outcomes
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6) and abs(one) < 100
    assert float((first - second).norm() / second.norm()) < 1e-3


def test_a_reference_of_equal_weights_diverges_by_nothing() -> None:
    groups = grown.coded_groups()
    loss = LossConfig(beta=0.1)
    figures = updated(moved(), packed(groups), counts_of(groups), loss=loss, reference=moved())
    assert figures["policy/kl"] == pytest.approx(0, abs=1e-9)


def test_a_target_with_codes_in_the_wrong_place_is_named_at_the_start() -> None:
    right = "<motion><motion_0_1><motion_1_5></motion>"
    given = [tiny.sample("right", columns={"target": right})]
    check_given(given, tiny.family(), [], wording="{target}", max_new_tokens=99)
    for wrong, says in {
        "<motion><motion_1_5><motion_0_1></motion>": "token 1 is a code of motion, level 1, where a code of",
        "<motion><motion_0_1></motion>": "token 2 is </motion>, where a code of motion, level 1 is due",
    }.items():
        given = [tiny.sample("wrong", columns={"target": [right, wrong]})]
        with pytest.raises(ValueError, match=f"made-up:wrong: sample wrong: {says}"):
            check_given(given, tiny.family(), [], wording="{target}", max_new_tokens=99)
