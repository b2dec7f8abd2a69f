"""Packed rows against the plain thing: one forward per completion, with its prompt, through transformers."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.codec.vocabulary import Vocabulary
from grpo.config.learner import LossConfig
from grpo.groups import Group, Prompt, Rollout, ScoredGroup
from grpo.packing import PackedRow, Segment, build_row, pack, segments_of
from grpo.policy import attention
from grpo.policy import model as policy_module
from grpo.policy.model import SUPPRESSED_BIAS, Head, Policy
from tests.support import tiny
from tests.support.learners import counts_of, packed, updated

TRAINED: dict[str, dict[str, Any]] = {
    "all": {},
    "the language model": {"frozen": ("vision", "merger")},
    "the merger": {"frozen": ("language", "vision")},
    "adapters": {"lora": tiny.LORA},
}

ROWS = {
    "one completion": ("qwen2_5_vl", 1),
    "some": ("qwen2_5_vl", 600),
    "all groups": ("qwen2_5_vl", 100_000),
    "some, Qwen3-VL": ("qwen3_vl", 600),
    "all groups, Qwen3-VL": ("qwen3_vl", 100_000),
    "all groups, Qwen2-VL": ("qwen2_vl", 100_000),
}
"""The families and the tokens per row."""


def plain_logps(policy: Policy, groups: list[ScoredGroup]) -> dict[tuple[int, ...], Tensor]:
    """Log-probs of every completion, each from a forward of its own through the unpatched model."""
    model, family = policy.model, tiny.family()
    model.model.language_model.config._attn_implementation = "sdpa"
    model.model.visual.config._attn_implementation = "sdpa"
    result = {}
    for scored in groups:
        prompt = scored.group.prompt
        for rollout in scored.group.rollouts:
            ids = torch.tensor([[*prompt.token_ids, *rollout.token_ids]])
            prompt_positions = family.positions(prompt)
            after = prompt_positions.max() + 1 + torch.arange(len(rollout.token_ids))
            positions = torch.cat([prompt_positions, after.expand(3, -1)], dim=1)[:, None]
            logits = model(input_ids=ids, position_ids=positions, **plain_media(prompt)).logits[
                0, len(prompt.token_ids) - 1 : -1
            ]
            bias = torch.zeros(logits.shape[-1])
            bias[list(family.suppressed_ids)] = SUPPRESSED_BIAS
            logits = (logits + bias) / policy.head.temperature
            if family.vocabulary is not None:
                logits = logits.masked_fill(forbidden(family.vocabulary, prompt, rollout, logits), -torch.inf)
            result[prompt.token_ids + rollout.token_ids] = -torch.nn.functional.cross_entropy(
                logits, torch.tensor(rollout.token_ids), reduction="none"
            )
    return result


def forbidden(rules: Vocabulary, prompt: Prompt, rollout: Rollout, logits_LV: Tensor) -> Tensor:
    """What the rules of code tokens forbid at each token of a completion, (L, V), asked one by one."""
    before = [prompt.token_ids[-1], *rollout.token_ids[:-1]]
    states = [rules.state_after(token) for token in before]
    return torch.tensor(
        [[not rules.allows(state, token) for token in range(logits_LV.shape[1])] for state in states]
    )


def plain_media(prompt: Prompt) -> dict[str, Tensor]:
    """The pixels and grids of what a prompt shows, as transformers takes videos and images."""
    made: dict[str, Tensor] = {}
    for names, is_picture in (
        (("pixel_values_videos", "video_grid_thw"), False),
        (("pixel_values", "image_grid_thw"), True),
    ):
        if clips := [clip for clip in prompt.clips if clip.is_picture == is_picture]:
            made |= zip(names, tiny.pixels(*clips), strict=True)
    return made


def by_completion(row: PackedRow, values_T: Tensor) -> dict[tuple[int, ...], Tensor]:
    """A row's values, cut into completions and keyed by prompt and completion tokens."""
    ids, result, start = row.input_ids_N.tolist(), {}, 0
    while start < len(row.lengths_T):
        length = int(row.lengths_T[start])
        first_target = row.target_T[start : start + length].tolist()
        last_of_prompt = int(row.source_T[start])
        prompt = next(
            p for p in row.prompts if tuple(ids[: last_of_prompt + 1][-len(p.token_ids) :]) == p.token_ids
        )
        result[(*prompt.token_ids, *first_target)] = values_T[start : start + length]
        start += length
    return result


def gradient(policy: Policy) -> Tensor:
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    policy.zero_grad()
    return flat


@lru_cache
def plain_outcome(family_name: str, trained: str) -> tuple[dict[tuple[int, ...], Tensor], Tensor]:
    """The plain forwards' log-probs, and the gradient of the completions' mean, weighted with their advantages."""
    groups = tiny.with_several_media()
    # In double precision, or the plain forwards' own rounding would count, too.
    exact = tiny.policy(seed=1, temperature=0.8, **TRAINED[trained]).double()
    expected = plain_logps(exact, groups)
    num_tokens = sum(map(len, expected.values()))
    for scored in groups:
        for rollout, advantage in zip(scored.group.rollouts, scored.advantages, strict=True):
            assert advantage is not None
            logps_T = expected[scored.group.prompt.token_ids + rollout.token_ids]
            if logps_T.requires_grad:  # without a clip, nothing of the merger is in it
                ((logps_T * advantage).sum() / num_tokens).backward(retain_graph=True)
    return {key: logps_T.detach() for key, logps_T in expected.items()}, gradient(exact)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(("each_family", "tokens_per_row"), ROWS.values(), indirect=["each_family"], ids=ROWS)
def test_packed_log_probs_and_gradients_equal_one_forward_per_completion(
    tokens_per_row: int, trained: str, each_family: str
) -> None:
    groups = tiny.with_several_media()
    policy = tiny.policy(seed=1, temperature=0.8, **TRAINED[trained])
    rows = packed(groups, tokens_per_row=tokens_per_row)
    num_tokens = sum(len(row.target_T) for row in rows)  # a loss is divided by them
    found: dict[tuple[int, ...], Tensor] = {}
    for row in rows:
        logps_T = policy(row).logps_T
        ((logps_T * row.advantages_T).sum() / num_tokens).backward()
        found.update(by_completion(row, logps_T.detach()))
    found_gradient = gradient(policy)

    expected, expected_gradient = plain_outcome(each_family, trained)
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 1e-4
    assert float((found_gradient - expected_gradient).abs().max()) < 2e-6
    assert float((found_gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-5


@pytest.mark.usefixtures("each_family")
def test_gradient_checkpointing_changes_nothing() -> None:
    groups = tiny.ragged_groups()
    gradients = []
    for checkpointing in (False, True):
        policy = tiny.policy(seed=1, gradient_checkpointing=checkpointing).train()
        (row,) = packed(groups, tokens_per_row=100_000)
        scores = policy(row)
        (scores.logps_T * row.advantages_T).sum().backward()
        gradients.append(gradient(policy))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def num_patches(scored: ScoredGroup) -> int:
    clip = scored.group.prompt.clip
    return 0 if clip is None else len(tiny.pixels(clip)[0])


def test_in_an_update_the_tower_runs_once_per_group_and_of_a_split_group_once_per_part() -> None:
    groups = [scored for scored in tiny.ragged_groups() if scored.group.prompt.clip is not None]
    policy, seen = tiny.policy(seed=1), []
    policy.model.model.visual.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    expected = sum(map(num_patches, groups))
    for tokens_per_row, num_passes in ((100_000, 1), (600, 2)):
        rows = packed(groups, tokens_per_row=tokens_per_row)
        updated(policy, rows, counts_of(groups), loss=LossConfig())
        assert len(rows) == len(seen) == num_passes and sum(seen) == expected
        seen.clear()
    updated(policy, packed(groups[:1], tokens_per_row=1), counts_of(groups[:1]), loss=LossConfig())
    assert seen == [num_patches(groups[0])] * 4  # a row for each completion


def test_the_head_sees_the_completions_tokens_alone_a_chunk_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, logits = [], Head.logits

    def watched(head: Head, hidden_TD: Tensor, previous_T: Tensor) -> Tensor:
        seen.append(len(hidden_TD))
        return logits(head, hidden_TD, previous_T)

    monkeypatch.setattr(Head, "logits", watched)
    monkeypatch.setattr(policy_module, "HEAD_CHUNK_TOKENS", 50)
    groups = tiny.ragged_groups()
    (row,) = packed(groups, tokens_per_row=100_000)
    logps_T = tiny.policy()(row).logps_T
    assert sum(seen) == len(row.target_T) < len(row.input_ids_N) / 4
    assert len(seen) > 1 and max(seen) <= 50
    logps_T.sum().backward()  # which computes every chunk again
    assert sum(seen) == 2 * len(row.target_T) and max(seen) <= 50


def test_a_row_holds_each_prompt_once_and_no_padding() -> None:
    groups = tiny.ragged_groups()
    (row,) = packed(groups, tokens_per_row=100_000)
    prompts = sum(len(scored.group.prompt.token_ids) for scored in groups)
    completions = sum(len(r.token_ids) for scored in groups for r in scored.group.rollouts)
    assert len(row.input_ids_N) == prompts + completions
    assert len(row.target_T) == completions


def test_rows_keep_the_budget_unless_one_completion_exceeds_it() -> None:
    rows = packed(tiny.ragged_groups(), tokens_per_row=320)
    alone = [len(row.prompts) == 1 and int(row.lengths_T[0]) == len(row.lengths_T) for row in rows]
    assert all(len(row.input_ids_N) <= 320 or only for row, only in zip(rows, alone, strict=True))
    assert len(rows) < len(tiny.ragged_groups()) + 2  # small groups share rows


def text_group(sizes: Sequence[int]) -> ScoredGroup:
    """A group about text alone, with a prompt of one token and completions of so many."""
    prompt = Prompt(sample=tiny.sample(), clip=None, token_ids=(1,), tags=())
    rollouts = tuple(tiny.rollout(prompt, [2] * size) for size in sizes)
    group = Group(prompt=prompt, rollouts=rollouts)
    advantages = tuple(float(number + 1) for number in range(len(sizes)))
    return ScoredGroup(group=group, table=tiny.table(advantages), advantages=advantages)


def test_a_group_is_split_only_where_the_next_completion_exceeds_the_budget() -> None:
    # The prompt leaves room for 4: 2 + 2 fill it exactly.
    segments = segments_of([text_group((2, 2, 2))], tokens_per_row=5, drop_flat=True, trained=True)
    assert [[len(rollout.token_ids) for rollout in each.rollouts] for each in segments] == [[2, 2], [2]]
    assert [each.advantages for each in segments] == [(1.0, 2.0), (3.0,)]


def test_large_segments_come_first_so_that_small_ones_fill_their_rows() -> None:
    groups = [text_group((size - 1,)) for size in (3, 4, 5, 6)]
    segments = segments_of(groups, tokens_per_row=9, drop_flat=True, trained=True)
    rows = pack(segments, tiny.family(), tokens_per_row=9)
    assert sorted(len(row.input_ids_N) for row in rows) == [9, 9]


def test_segments_of_one_shape_are_a_block_and_a_row_without_clips_has_an_empty_index() -> None:
    groups = [text_group((3,)), text_group((2, 2)), text_group((3,))]
    segments = segments_of(groups, tokens_per_row=99, drop_flat=True, trained=True)
    (row,) = pack(segments, tiny.family(), tokens_per_row=99)
    assert sorted(block.completion_PGL.shape for block in row.layout.blocks) == [(1, 2, 2), (2, 1, 3)]
    assert (row.vision_index_M.dtype, len(row.vision_index_M)) == (torch.long, 0)


def test_each_position_of_a_row_knows_its_prompt_its_completion_and_how_far_behind_the_start_it_is() -> None:
    segments = segments_of([text_group((2, 1))] * 2, tokens_per_row=99, drop_flat=True, trained=True)
    (row,) = pack(segments, tiny.family(), tokens_per_row=99)
    # prompt, two tokens, one token; and once more
    assert row.layout.prompt_N.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert row.layout.completion_N.tolist() == [-1, 0, 0, 1, -1, 2, 2, 3]
    assert row.layout.offset_N.tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_a_row_is_moved_with_all_that_it_holds() -> None:
    (row,) = packed(tiny.ragged_groups(), tokens_per_row=100_000)
    moved = row.to(torch.device("meta"))
    parts = (
        (row, moved),
        (row.layout, moved.layout),
        *zip(row.layout.blocks, moved.layout.blocks, strict=True),
    )
    for old, new in parts:
        before = {each.name: getattr(old, each.name) for each in fields(old)}
        tensors = {name: value for name, value in before.items() if isinstance(value, Tensor)}
        assert len(tensors) >= 2
        for name, tensor in tensors.items():
            assert getattr(new, name).device.type == "meta" and getattr(new, name).shape == tensor.shape
    assert moved.prompts == row.prompts


def test_flat_groups_and_abstentions_are_left_out() -> None:
    flat, mixed = tiny.ragged_groups()[:2]
    flat = replace(flat, advantages=(0.0,) * 4)
    mixed = replace(mixed, advantages=(1.0, None, -1.0))
    (row,) = packed([flat, mixed], drop_flat=True)
    assert [len(flat.group.rollouts), len(row.prompts)] == [4, 1]
    assert sorted(set(row.lengths_T.tolist())) == [7, 20]  # not 3, which abstained
    assert packed([flat], drop_flat=True) == []
    assert len(packed([flat, mixed], drop_flat=False)[0].prompts) == 2


def test_what_is_not_trained_on_is_packed_by_itself() -> None:
    flat, mixed = tiny.ragged_groups()[:2]
    flat = replace(flat, advantages=(0.0, None, 0.0, 0.0))
    mixed = replace(mixed, advantages=(1.0, None, -1.0))
    (row,) = packed([flat, mixed], drop_flat=True, trained=False)
    # All of the flat group, 5 + 12 + 1 + 9 tokens, and the 3 of the one without an advantage.
    assert sorted(row.lengths_T.unique().tolist()) == [1, 3, 5, 9, 12] and len(row.target_T) == 30
    assert sorted(row.lengths_T[row.advantages_T.isnan()].unique().tolist()) == [3, 12]
    (row,) = packed([flat, mixed], drop_flat=False, trained=False)
    assert sorted(row.lengths_T.unique().tolist()) == [3, 12]
    assert packed([tiny.ragged_groups()[0]], drop_flat=True, trained=False) == []


def test_a_row_whose_features_and_pads_disagree_is_refused() -> None:
    (row,) = packed(tiny.ragged_groups()[:1], tokens_per_row=1000)
    broken = PackedRow(
        **{name: getattr(row, name) for name in row.__slots__ if name != "vision_index_M"},
        vision_index_M=row.vision_index_M[:-1],
    )
    with pytest.raises(ValueError, match="31 vision tokens for 32 features in: s0"):
        tiny.policy()(broken)


def test_the_cuda_mask_works_under_autocast_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, on a CPU: bf16 passes over fp32 weights, and torch's bias object in place of the mask."""
    (row,) = packed(tiny.ragged_groups(), tokens_per_row=100_000)
    policy = tiny.policy(seed=1, attention="sdpa")
    expected = policy(row).logps_T
    on_cuda = attention.completion_mask
    monkeypatch.setattr(
        attention, "completion_mask", lambda length, prompt, _: on_cuda(length, prompt, "cuda")
    )
    torch.testing.assert_close(policy(row).logps_T, expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = policy(row).logps_T
    half.sum().backward()
    assert half.dtype == torch.float32
    assert float((half - expected).detach().abs().mean()) < 0.2  # bf16 rounds far-off log-probs of about -20


def test_every_flat_position_is_restored_from_its_own_slot() -> None:
    (row,) = packed(tiny.ragged_groups(), tokens_per_row=100_000)
    slots = [
        index.flatten() for block in row.layout.blocks for index in (block.prompt_PS, block.completion_PGL)
    ]
    assert torch.equal(torch.cat(slots)[row.layout.restore_N], torch.arange(len(row.input_ids_N)))


def test_each_flat_position_knows_its_prompt_its_completion_and_its_place_in_the_text() -> None:
    """A prompt of two tokens with completions of one and three, and one of three tokens with one of two."""
    segments = []
    for num_prompt, lengths in ((2, (1, 3)), (3, (2,))):
        prompt = replace(tiny.prompt(tiny.sample(), None), token_ids=(5,) * num_prompt)
        rollouts = tuple(tiny.rollout(prompt, [7] * length) for length in lengths)
        segments.append(Segment(prompt=prompt, rollouts=rollouts, advantages=(0.0,) * len(rollouts)))
    layout = build_row(segments, tiny.family()).to(torch.device("cpu")).layout
    assert layout.prompt_N.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert layout.completion_N.tolist() == [-1, -1, 0, 1, 1, 1, -1, -1, -1, 2, 2]
    assert layout.offset_N.tolist() == [0, 1, 2, 2, 3, 4, 0, 1, 2, 3, 4]
