"""Memory that runs out in a row's pass: the row is passed in two halves, and the gradient is the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from grpo.config.learner import LossConfig, OptimConfig
from grpo.learner.passes import RowTooLarge
from grpo.learner.update import Learner
from grpo.packing import PackedRow, halves
from grpo.run.metrics import Metrics
from tests.support import tiny
from tests.support.learners import (
    LONG,
    counts_of,
    gradient_of,
    lack_memory,
    make_learner,
    moved_policy,
    packed,
    text_groups,
)

LOSS = LossConfig(beta=0.1, top_entropy_quantile=0.5, entropy_coef=0.01)


def passed(
    num_tokens: int, *, tokens_per_row: int, way: str = "forward"
) -> tuple[Learner, Any, list[int], Sequence[PackedRow]]:
    """An update's passes, whose gradient is left on the policy; the sizes of the passes that lacked memory."""
    groups = text_groups(lengths_of=LONG)
    rows = packed(groups, tokens_per_row=tokens_per_row)
    learner = make_learner(tiny.policy(seed=1), loss=LOSS, reference=moved_policy())
    inputs = learner.prepare(rows, counts_of(groups))
    failed = lack_memory(learner.policy, num_tokens, way=way)
    return learner, learner.forward_backward(inputs), failed, rows


def test_halves_have_a_rows_completions_in_its_order() -> None:
    (row,) = packed(tiny.ragged_groups())
    first, second = halves(row, tiny.family())
    for name in ("target_T", "advantages_T", "sampler_logps_T", "lengths_T"):
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)]), getattr(row, name))
    assert first.prompts + second.prompts == row.prompts
    sizes = len(first.input_ids_N), len(second.input_ids_N)
    assert sum(sizes) == len(row.input_ids_N)
    largest = max(segment.num_tokens for segment in row.segments)
    assert abs(sizes[0] - sizes[1]) <= largest


def test_a_group_is_parted_between_its_completions_and_one_completion_stays_whole() -> None:
    # 3 + 11 + 1 tokens: 3 and 12 differ less than 14 and 1.
    (row,) = packed(text_groups()[:1])
    parts = halves(row, tiny.family())
    assert [part.lengths_T.unique_consecutive().tolist() for part in parts] == [[3], [11, 1]]
    assert parts[0].prompts == parts[1].prompts == row.prompts
    assert halves(parts[0], tiny.family()) == [parts[0]]


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("tokens_per_row", [10_000, 130])
def test_a_row_that_lacks_memory_is_passed_in_two_halves_with_the_same_gradient(
    way: str, tokens_per_row: int
) -> None:
    whole, expected, none, rows = passed(10_000, tokens_per_row=tokens_per_row)
    largest = max(len(row.input_ids_N) for row in rows)
    halved, found, failed, _ = passed(largest - 1, tokens_per_row=tokens_per_row, way=way)
    assert (none, failed) == ([], [largest])
    torch.testing.assert_close(gradient_of(halved.policy), gradient_of(whole.policy), rtol=1e-4, atol=1e-7)
    figures, others = (
        sum((each.metrics for each in passes), Metrics()).reduced() for passes in (found, expected)
    )
    assert figures.pop("optim/split_rows") == sum(len(row.input_ids_N) == largest for row in rows)
    # The prompt of a group that is parted is computed twice.
    assert figures.pop("tokens/computed") >= others.pop("tokens/computed")
    assert figures == pytest.approx(others, rel=1e-4, abs=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.old_logps_T, other.old_logps_T, rtol=1e-4, atol=1e-5)


def test_later_updates_of_a_step_are_split_too_and_move_the_weights_alike() -> None:
    groups, rows = text_groups(), packed(text_groups())
    moved = []
    for num_tokens in (10_000, len(rows[0].input_ids_N) - 1):
        learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(num_iterations=2))
        failed = lack_memory(learner.policy, num_tokens, way="backward")
        result = learner.update(rows, counts_of(groups), 1)
        moved.append((result.norms, result.metrics.reduced(), len(failed)))
    (norms, figures, none), (others, found, failed) = moved
    assert (none, failed, found.pop("optim/split_rows")) == (0, 2, 2)
    assert others == pytest.approx(norms, rel=1e-4)
    assert found == pytest.approx(figures, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "tokens_per_row", "why"),
    [
        (20, 10_000, "so is one of a half"),
        (2, 1, "it has one completion only"),
        # A group of 45 tokens, with a prompt of 24 and completions of 7, 9 and 5.
        (44, 60, "the larger half of it would still have 38"),
    ],
)
def test_what_does_not_fit_in_halves_ends_the_run_in_one_line(
    num_tokens: int, tokens_per_row: int, why: str
) -> None:
    groups = text_groups()
    rows = packed(groups, tokens_per_row=tokens_per_row)
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig())
    lack_memory(learner.policy, num_tokens, way="forward")
    words = rf"out of memory: the pass of a row of \d+ tokens is too large, and {why}; lower optim.tokens_per_row=\d+ "
    with pytest.raises(RuntimeError, match=words) as caught:
        learner.update(rows, counts_of(groups), 1)
    assert "\n" not in str(caught.value) and "Tried to allocate 2.00 GiB." in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "size", "halved", "tokens_per_row", "why"),
    [
        ("NO", 1, False, 10_000, ""),
        ("MULTI_GPU", 1, False, 10_000, ""),
        (
            "MULTI_GPU",
            2,
            False,
            10_000,
            "the processes that compute it .*; raise optim.seq.*_size=2, lower",
        ),
        ("DEEPSPEED", 1, False, 10_000, "with DEEPSPEED it can't be made in two halves; lower"),
        ("FSDP", 1, False, 10_000, "with FSDP it can't be made in two halves; lower"),
        ("NO", 1, True, 10_000, "so is one of a half; lower"),
        ("NO", 1, True, 1, "it has one completion only; lower"),
        ("NO", 1, False, 60, "the larger half of it would still have 38; lower"),
    ],
)
def test_a_row_is_halved_unless_there_is_a_reason_against_it(
    kind: str, size: int, halved: bool, tokens_per_row: int, why: str
) -> None:
    learner: Any = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=DistributedType[kind]),
        split=SimpleNamespace(size=size),
        policy=SimpleNamespace(family=tiny.family()),
        optim=OptimConfig(tokens_per_row=tokens_per_row),
    )
    rows = packed(text_groups(), tokens_per_row=tokens_per_row)
    inputs: Any = SimpleNamespace(rows=rows)
    refused = pytest.raises(
        RuntimeError, match=rf"out of memory: .* tokens is too large, and {why} .*\(said\)"
    )
    with refused if why else nullcontext():
        found = Learner._to_halve(learner, inputs, RowTooLarge(0, "said"), {0} if halved else set())
        assert found == {0}
