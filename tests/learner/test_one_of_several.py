"""The part of one process in an update of several: what it passes, exchanges and counts, with the others made up.

What real processes exchange has tests of its own (tests/policy/test_sharding.py, tests/policy/test_sequence_split.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from grpo.config.learner import LossConfig, OptimConfig
from grpo.learner import update as update_module
from grpo.learner.passes import RowTooLarge
from grpo.packing import PackedRow
from grpo.policy.model import TokenScores
from grpo.policy.sequence_split import SequenceSplit
from tests.support import tiny
from tests.support.learners import (
    counts_of,
    gradient_of,
    make_learner,
    moved_policy,
    packed,
    text_groups,
)


def plain_learner(**loss: Any) -> Any:
    return make_learner(tiny.policy(seed=1), loss=LossConfig(**loss), reference=moved_policy())


def short_rows() -> list[PackedRow]:
    """A row for each completion, of 3, 11, 1, 7, 9, 5, 2, 2 and 14 tokens."""
    return packed(text_groups(), tokens_per_row=1)


@pytest.mark.parametrize("is_fsdp2", [False, True])
def test_gradients_are_exchanged_in_the_last_pass_alone_and_kept_until_then_but_by_fsdp2(
    is_fsdp2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, rows, kept, seen = plain_learner(), packed(text_groups(), tokens_per_row=60), [], []

    @contextmanager
    def no_sync(model: Any) -> Iterator[None]:
        kept.append(model)
        yield
        assert kept.pop() is learner.wrapped

    monkeypatch.setattr(Accelerator, "is_fsdp2", is_fsdp2)
    monkeypatch.setattr(learner.accelerator, "no_sync", no_sync)
    learner.policy.register_forward_hook(
        lambda *_: seen.append((learner.accelerator.sync_gradients, len(kept)))
    )
    learner.forward_backward(learner.prepare(rows, counts_of(text_groups())))
    assert len(rows) > 2 and seen == [(False, 0 if is_fsdp2 else 1)] * (len(rows) - 1) + [(True, 0)]


def test_a_process_with_fewer_rows_than_another_makes_as_many_passes_which_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, results = packed(text_groups(), tokens_per_row=60), []
    for missing in (0, 2):
        learner, exchanged = plain_learner(beta=0.1), []
        learner.policy.register_forward_hook(
            lambda *_, seen=exchanged, own=learner.accelerator: seen.append(own.sync_gradients)
        )
        others = torch.tensor([len(rows) + missing])
        monkeypatch.setattr(
            learner.accelerator, "gather", lambda own, others=others: torch.cat([own, others])
        )
        found = learner.forward_backward(learner.prepare(rows, counts_of(text_groups())))
        assert len(found) == len(rows) and exchanged == [False] * (len(rows) + missing - 1) + [True]
        assert len(learner.reference_logps(rows)) == len(learner._scores_only(rows)) == len(rows)
        results.append(gradient_of(learner.policy))
    assert torch.equal(*results)


def test_a_gradient_that_processes_average_is_made_for_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for num_processes in (1, 4):
        learner = plain_learner()
        monkeypatch.setattr(Accelerator, "num_processes", num_processes)
        learner.forward_backward(learner.prepare(packed(text_groups()), counts_of(text_groups())))
        results.append(gradient_of(learner.policy))
    torch.testing.assert_close(results[1], 4 * results[0])


def selected(
    monkeypatch: pytest.MonkeyPatch, entropies: Sequence[Sequence[float]], quantile: float, **given: Any
) -> tuple[list[list[float]], float]:
    """The masks of rows with these entropies, and the number of tokens that are selected in all processes.

    others: the entropies of another process, up to whose number this one's are filled by three; split: the learner's.
    """
    others, split = given.get("others"), given.get("split")
    learner = plain_learner(top_entropy_quantile=quantile)
    learner.split = split or learner.split
    inputs = learner.prepare(short_rows()[: len(entropies)], counts_of(text_groups()))
    scores = [TokenScores(torch.zeros(len(each)), torch.tensor(each)) for each in entropies]
    monkeypatch.setattr(learner, "_scores_only", lambda rows: scores[: len(rows)])

    def padded(own: Tensor, dim: int = 0, pad_index: int = 0) -> Tensor:
        return torch.cat([own, torch.full((3,), float(pad_index))])

    if others is not None:
        monkeypatch.setattr(learner.accelerator, "pad_across_processes", padded)
        monkeypatch.setattr(learner.accelerator, "gather", lambda own: torch.cat([own, torch.tensor(others)]))
    found = learner._select_tokens(inputs)
    return [each_T.tolist() for each_T in found.kept_rows], found.num_tokens


def test_tokens_at_the_threshold_are_selected_and_those_without_entropy_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entropies = [[0.0, 0.25, 0.5], [0.75, 1.0]]
    assert selected(monkeypatch, entropies, 0.5) == ([[0, 0, 1], [1, 1]], 3)
    # At (1 - 0.45) * 4 = 2.2 of the five, 0.55; between other tokens if there were one more or one less.
    assert selected(monkeypatch, entropies, 0.45) == ([[0, 0, 0], [1, 1]], 2)


def test_the_threshold_is_that_of_all_processes_tokens_and_not_of_what_fills_them_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entropies = [[0.0, 0.25, 0.5], [0.75, 1.0]]
    # The median of nine is 0.7.
    others = [0.6, 0.7, 0.8, 0.9]
    assert selected(monkeypatch, entropies, 0.5, others=others) == ([[0, 0, 0], [1, 1]], 5)


def test_of_processes_that_share_rows_the_first_one_counts_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entropies, second = [[0.0, 0.25, 0.5], [0.75, 1.0]], SequenceSplit(size=2, rank=1)
    first = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert selected(monkeypatch, entropies, 0.5, others=first, split=second) == ([[0, 0, 1], [1, 1]], 3)


def test_every_pass_is_split_alike_and_has_gradients_of_entropies_only_for_the_bonus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, watched = (packed(text_groups(), drop_flat=True, trained=trained) for trained in (True, False))
    for coefficient in (0.0, 0.01):
        learner = plain_learner(beta=0.1, top_entropy_quantile=0.5, entropy_coef=coefficient)
        learner.split = SequenceSplit()
        expected, passes = [], []
        monkeypatch.setattr(
            learner.policy, "expect", lambda rows, split, kept=expected: kept.append((rows, split))
        )
        for model in (learner.policy, learner.reference.policy):
            model.register_forward_pre_hook(
                lambda _, __, options, kept=passes: kept.append(options), with_kwargs=True
            )
        learner.update(rows, counts_of(text_groups()), 1, watched=watched)
        # The clips of all rows that are passed are announced, and those of the reference's.
        assert expected == [([*watched, *rows], learner.split), (rows, learner.split)]
        assert all(each.pop("split") is learner.split for each in passes)
        wanted = {"entropy_gradient": coefficient > 0}
        assert passes.count({}) == len(rows) and passes.count(wanted) == len(passes) - len(rows) > 2


def test_the_reference_of_a_process_own_rows_is_asked_of_those_of_all_that_share_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, rows = plain_learner(beta=0.1), short_rows()
    # One process in earnest, the second of two by its number.
    learner.split = SequenceSplit(size=1, rank=1)

    def shared(_: SequenceSplit, items: Sequence[Any], device: torch.device) -> list[Any]:
        assert device == learner.accelerator.device
        return [rows[:2], *items, rows[4:5]]

    monkeypatch.setattr(SequenceSplit, "shared", shared)
    found = learner.reference_logps_of_own(rows[2:4])
    for logps_T, expected_T in zip(found, learner.reference_logps(rows[2:4]), strict=True):
        assert torch.equal(logps_T, expected_T)


def test_a_process_that_does_not_lead_tells_what_holds_for_all_and_no_sums() -> None:
    learner = plain_learner()
    learner.split = SequenceSplit(size=1, rank=1)
    found = learner.update(packed(text_groups()), counts_of(text_groups()), 1)
    leading = plain_learner().update(packed(text_groups()), counts_of(text_groups()), 1)
    assert found.norms == leading.norms and not found.logps
    assert found.metrics.maxima == leading.metrics.maxima and leading.metrics.sums
    assert not found.metrics.sums and not found.metrics.means


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MULTI_GPU", "NO"])
def test_a_row_is_halved_only_where_no_other_process_waits_for_its_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = plain_learner()
    rows = packed(text_groups(), tokens_per_row=60)
    inputs = learner.prepare(rows, counts_of(text_groups()))
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    # Halves would be nearly as long: a row is one group.
    monkeypatch.setattr(update_module, "why_not_in_halves", lambda *_, **__: "")
    sizes = [len(row.input_ids_N) for row in rows]
    for index, size in enumerate(sizes):
        error = RowTooLarge(index, "said")
        if kind in ("NO", "MULTI_GPU"):
            expected = {other for other in range(len(rows)) if sizes[other] >= size}
            assert learner._to_halve(inputs, error, set()) == expected
            continue
        why = f"with {kind} it can't be made in two halves"
        with pytest.raises(RuntimeError, match=f"a row of {size} tokens is too large, and {why}; lower "):
            learner._to_halve(inputs, error, set())


def test_a_row_that_processes_share_is_not_halved() -> None:
    learner = plain_learner()
    inputs = learner.prepare(packed(text_groups()), counts_of(text_groups()))
    learner.split = SequenceSplit(size=2)
    why = "the processes that compute it together wait for each other"
    with pytest.raises(
        RuntimeError, match=f"too large, and {why}; raise optim.sequence_parallel_size=2, lower "
    ):
        learner._to_halve(inputs, RowTooLarge(0, "said"), set())


@pytest.mark.parametrize(
    ("moves", "in_passes", "expected"),
    [
        (False, torch.bfloat16, torch.bfloat16),
        (False, None, torch.float32),
        (True, torch.bfloat16, torch.float32),
    ],
)
def test_the_reference_has_the_precision_of_the_policys_passes_unless_it_moves(
    moves: bool, in_passes: torch.dtype | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, asked = plain_learner(beta=0.1, sync_ref_model=moves, reference_offload=True), []

    def load(dtype: torch.dtype) -> Any:
        asked.append(dtype)
        return moved_policy()

    monkeypatch.setattr(update_module, "pass_dtype", {learner.accelerator: in_passes}.__getitem__)
    reference = learner._make_reference(load)
    assert asked == [expected]
    assert (reference.device, reference.offload) == (learner.accelerator.device, True)


def test_what_splits_the_weights_is_told_of_the_largest_norm_and_the_head_and_where_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    for name in ("set_up_sharding", "share_head", "take_start"):
        monkeypatch.setattr(update_module, name, lambda *given: told.append(given))
    policy = tiny.policy(seed=1)
    learner = make_learner(policy, loss=LossConfig(), optim=OptimConfig(max_grad_norm=0.3))
    head = policy.head, policy.model.lm_head.weight
    assert told == [(learner.accelerator, 0.3), head, (learner.optimizer.optimizer,)]


def test_a_norm_that_deepspeed_does_not_know_yet_is_0_and_the_step_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, steps = plain_learner(), []
    monkeypatch.setattr(learner.accelerator, "clip_grad_norm_", lambda *_: None)
    learner.optimizer.optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    assert learner.update(packed(text_groups()), counts_of(text_groups()), 1).norms == [0.0] and steps == [1]
