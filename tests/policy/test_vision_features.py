"""What a frozen vision tower makes of a clip is computed once, and equals what it would make again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.media.clip import Clip
from grpo.media.disk_cache import DiskCache
from grpo.media.memory_cache import MemoryCache
from grpo.policy.model import Policy
from grpo.policy.vision_features import FeatureCache, FeatureCounters
from tests.support import runs, tiny
from tests.support.clips import with_facts
from tests.support.learners import packed


def cached(policy: Policy, *, max_gib: float = 1.0, disk: DiskCache | None = None) -> FeatureCache:
    policy.feature_cache = FeatureCache(
        policy.model.model.visual, memory=MemoryCache(max_gib=max_gib), disk=disk
    )
    return policy.feature_cache


def clips(count: int) -> list[Clip]:
    return [tiny.clip(num_frames=4 + 2 * index, seed=index) for index in range(count)]


@pytest.mark.usefixtures("each_family")
def test_log_probs_and_gradients_are_those_of_fresh_features() -> None:
    policy = tiny.policy(seed=1, frozen=["vision", "merger"])
    row, *_ = packed(tiny.ragged_groups(), tokens_per_row=4096)

    def outcome() -> tuple[torch.Tensor, torch.Tensor]:
        policy.zero_grad()
        logps_T = policy(row).logps_T
        logps_T.sum().backward()
        return logps_T.detach(), policy.model.get_input_embeddings().weight.grad.clone()

    fresh = outcome()
    cache = cached(policy)
    first, second = outcome(), outcome()
    num_clips = sum(prompt.clip is not None for prompt in row.prompts)
    assert cache.counters == FeatureCounters(computed=num_clips, reused=num_clips) and num_clips > 1
    for a, b in zip(fresh, first, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-5, atol=1e-6
        )  # there all clips went through the tower at once
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("each_family")
def test_questions_about_one_clip_in_a_row_share_one_pass_of_the_tower() -> None:
    clip, policy = tiny.clip(num_frames=4), tiny.policy(seed=1)
    groups = [
        tiny.ragged_group(tiny.prompt(tiny.sample(name, question=f"{name}?"), one), [3, 5], seed=i)
        for i, (name, one) in enumerate([("Who", clip), ("Where", tiny.clip(seed=1)), ("What", clip)])
    ]
    (row,) = packed(groups)
    alone = {group.group.prompt.sample.id: policy(packed([group])[0]).logps_T for group in groups}
    seen: list[int] = []
    policy.model.model.visual.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    logps_T = policy(row).logps_T
    expected_T = torch.cat([alone[prompt.sample.id] for prompt in row.prompts])
    torch.testing.assert_close(logps_T, expected_T, atol=1e-5, rtol=0)
    assert seen == [sum(4 * policy.family.num_vision_tokens(each) for each in (clip, tiny.clip()))]


@pytest.mark.usefixtures("each_family")
def test_the_same_moments_with_other_pixels_have_other_features() -> None:
    policy = tiny.policy(frozen=["vision", "merger"])
    cache, clip = cached(policy), tiny.clip(num_frames=4, seed=0)
    black = Clip(clip.facts, np.zeros_like(clip.frames_FHWC))
    assert not torch.equal(policy._features_of([clip]), policy._features_of([black]))
    again = with_facts(clip, path="elsewhere.mp4")
    assert torch.equal(policy._features_of([clip]), policy._features_of([again]))
    assert cache.counters == FeatureCounters(computed=2, reused=2)


def test_frames_and_features_share_one_limit() -> None:
    policy, clip = tiny.policy(frozen=["vision", "merger"]), tiny.clip(num_frames=4, seed=0)
    num_bytes = policy._features_of([clip]).nbytes
    memory = MemoryCache(max_gib=(clip.frames_FHWC.nbytes + 1.5 * num_bytes) / 2**30)
    memory.put("frames", clip, clip.frames_FHWC.nbytes)
    policy.feature_cache = FeatureCache(policy.model.model.visual, memory=memory)
    policy._features_of([clip])
    assert "frames" in memory and memory.num_bytes == clip.frames_FHWC.nbytes + num_bytes
    policy._features_of([tiny.clip(num_frames=4, seed=1)])
    assert "frames" not in memory and memory.num_bytes == 2 * num_bytes


def test_memory_is_bounded_and_the_features_used_longest_ago_go() -> None:
    policy = tiny.policy(frozen=["vision", "merger"])
    first, second, third = (tiny.clip(num_frames=4, seed=seed) for seed in range(3))
    num_bytes = policy._features_of([first]).nbytes
    cache = cached(policy, max_gib=2.5 * num_bytes / 2**30)
    for clip in (first, second, first, third, first, second):
        policy._features_of([clip])
    assert cache.counters == FeatureCounters(computed=4, reused=2)  # the second one went when the third came


def test_another_run_finds_the_features_on_disk_and_another_tower_does_not(tmp_path: Path) -> None:
    disk, some = DiskCache(tmp_path, max_gib=0.1), clips(3)
    before = cached(tiny.policy(seed=1), disk=disk)
    kept = [before.get(clip, lambda clip: torch.full((2, 3), clip.num_frames + 0.5)) for clip in some]
    after = cached(tiny.policy(seed=1), max_gib=0, disk=disk)
    found = [after.get(clip, lambda clip: torch.full((2, 3), clip.num_frames + 0.5)) for clip in some]
    assert all(map(torch.equal, kept, found)) and after.counters == FeatureCounters(reused=3)
    normalised_otherwise = tiny.policy(seed=1)
    normalised_otherwise.feature_cache = FeatureCache(
        normalised_otherwise.model.model.visual,
        memory=MemoryCache(max_gib=0),
        disk=disk,
        about={"image_mean": 0.5},
    )
    normalised_otherwise.feature_cache.get(some[0], lambda clip: torch.zeros(2, 3))
    assert normalised_otherwise.feature_cache.counters == FeatureCounters(computed=1)
    other = cached(tiny.policy(seed=2), disk=disk)
    other.get(some[0], lambda clip: torch.zeros(2, 3))
    assert other.counters == FeatureCounters(computed=1)


def test_features_on_disk_that_the_tower_does_not_make_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk, (first, second) = DiskCache(tmp_path, max_gib=0.1), clips(2)
    before = cached(tiny.policy(), disk=disk)
    for clip in (first, second):
        before.get(clip, lambda clip: torch.ones(2, 3))
    after = cached(tiny.policy(), disk=disk)
    with caplog.at_level(logging.WARNING):
        values = [after.get(clip, lambda clip: torch.full((2, 3), 2.0)) for clip in (first, second)]
    assert [value.mean() for value in values] == [2.0, 2.0] and len(caplog.records) == 1
    assert after.counters == FeatureCounters(computed=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_come_from_disk_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    disk, clip = DiskCache(tmp_path, max_gib=0.1), tiny.clip(num_frames=4, seed=0)
    features_MD = torch.randn(5, 8).to(dtype)
    cached(tiny.policy(), disk=disk).get(clip, lambda clip: features_MD)
    found = cached(tiny.policy(), disk=disk).get(clip, lambda clip: features_MD)
    assert found.dtype == dtype and torch.equal(found, features_MD)


@pytest.mark.slow
def test_a_run_with_a_frozen_tower_runs_it_once_per_clip(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue("clips")
    options = [
        "model.freeze_vision=true", "loss.beta=0.1", "optim.num_iterations=2", "num_steps=4",
        "eval.every_steps=0", "checkpoint.every_steps=0",
    ]  # fmt: skip
    rows = runs.run(tmp_path / "a" / "run", folder, *options)
    computed = [row.get("media/features_computed", 0) for row in rows if row["step"]]
    assert computed == [4, 4, 4, 0]  # 12 clips; engine, policy, reference and both iterations share them
    assert rows[-1]["media/features_reused"] > 0
    assert (
        rows[1]["media/kept_gib"]
        < rows[2]["media/kept_gib"]
        < rows[3]["media/kept_gib"]
        == rows[4]["media/kept_gib"]
    )
    fresh = runs.run(tmp_path / "b" / "run", folder, *options, "media.cache_gib=0", "media.cache_disk_gib=0")
    assert fresh[-1]["media/kept_gib"] == 0
    assert runs.close(runs.repeatable(rows[1:]), runs.repeatable(fresh[1:]))
    later = runs.run(tmp_path / "a" / "again", folder, *options)
    assert sum(row.get("media/features_computed", 0) for row in later) == 0
    assert runs.repeatable(later) == runs.repeatable(rows)
