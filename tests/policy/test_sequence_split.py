"""Rows that several processes compute together: what each has of them, and the update of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from grpo.packing import PackedRow
from grpo.policy.sequence_split import ALONE, SequenceSplit
from tests.learner.splits import LIMITS, differences, in_one_process, in_several
from tests.support import tiny
from tests.support.learners import packed


def splits(size: int) -> list[SequenceSplit]:
    return [SequenceSplit(size=size, rank=rank) for rank in range(size)]


@pytest.fixture
def row() -> PackedRow:
    """All ragged groups, one of them twice: two questions about one clip."""
    groups = tiny.ragged_groups()
    (row,) = packed([*groups, groups[0]])
    return row


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_the_parts_are_the_row_and_padding(size: int, row: PackedRow) -> None:
    parts = [split.part(row) for split in splits(size)]
    (length,) = {len(part.input_ids_N) for part in parts}
    padding = size * length - len(row.input_ids_N)
    assert 0 <= padding < size
    assert torch.equal(torch.cat([p.input_ids_N for p in parts]), F.pad(row.input_ids_N, (0, padding)))
    assert torch.equal(
        torch.cat([p.positions_3N for p in parts], dim=1), F.pad(row.positions_3N, (0, padding))
    )
    vision = [part.vision_index_M + rank * length for rank, part in enumerate(parts)]
    assert torch.equal(torch.cat(vision), row.vision_index_M)
    assert all(part.layout is row.layout for part in parts)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_each_frame_is_seen_by_one_process_and_its_features_have_a_place(size: int, row: PackedRow) -> None:
    """The clips have 8, 32, 2, 8 and 4 temporal patches; of fewer than processes, one process has all."""
    clips = list(dict.fromkeys(prompt.clip for prompt in row.prompts if prompt.clip is not None))
    owned = [split.own_clips(row) for split in splits(size)]
    seen = sorted(frame.tobytes() for own in owned for clip in own for frame in clip.frames_FHWC)
    assert seen == sorted(frame.tobytes() for clip in clips for frame in clip.frames_FHWC)
    of_two_patches = [len(clip.frames_FHWC) for own in owned for clip in own if clip.width_px == 140]
    assert of_two_patches == ([2, 2] if size == 2 else [4])
    starts, places = splits(size)[0]._places(clips)
    family = tiny.family()
    for rank, own in enumerate(owned):
        assert starts[rank + 1] - starts[rank] == sum(family.num_vision_tokens(clip) for clip in own)
    assert torch.equal(torch.cat([*places.values()]).sort().values, torch.arange(starts[-1]))
    # Of the clip with 32 patches of 16 tokens, each process's tokens are in a row, and in order.
    (longest,) = [place for clip, place in places.items() if clip.num_frames == 64]
    assert len(longest) == 512 and (longest.diff() > 0).all() and int((longest.diff() > 1).sum()) == size - 1


@pytest.mark.usefixtures("each_family")
def test_the_tower_sees_of_a_part_of_a_clip_what_it_sees_of_the_whole() -> None:
    (row,) = packed(tiny.ragged_groups())
    policy = tiny.policy(seed=1)
    parts_MD = torch.cat([policy._features_of(split.own_clips(row)) for split in splits(4)])
    _, places = splits(4)[0]._places(ALONE.own_clips(row))
    expected_MD = policy._features_of(ALONE.own_clips(row))
    torch.testing.assert_close(parts_MD[torch.cat([*places.values()])], expected_MD, atol=1e-5, rtol=1e-5)


def test_a_part_of_a_clip_is_the_same_object_each_time_for_what_is_kept_of_it(row: PackedRow) -> None:
    split = SequenceSplit(size=2, rank=1)
    assert split.own_clips(row) == split.own_clips(row) and split.own_clips(row)


def test_clips_of_few_frames_go_to_each_process_in_its_turn() -> None:
    clips = [tiny.clip(num_frames=2, seed=seed) for seed in range(6)]
    groups = [tiny.ragged_group(tiny.prompt(tiny.sample(), clip), [3], seed=0) for clip in clips]
    (row,) = packed(groups)
    assert [len(split.own_clips(row)) for split in splits(3)] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "processes", "size"), [("multi_gpu", 2, 2), ("multi_gpu", 4, 4), ("zero3", 2, 2)]
)
def test_processes_that_share_rows_make_the_gradient_of_one(
    kind: str, processes: int, size: int, tmp_path: Path
) -> None:
    """Deepstack, a tower that trains, key heads for one each, codes, prompts that several completions share.

    Under ZeRO no process has the gradient, but all have the weights that it leads to. `tests.learner.splits` has all
    cases.
    """
    case = "full of qwen3_vl_untied_grown"
    off = differences(in_one_process(case), in_several(kind, case, processes, size, tmp_path), case)
    assert off.keys() == LIMITS.keys() - ({"gradient"} if kind == "zero3" else set())
    assert all(off[name] < LIMITS[name] for name in off), off
