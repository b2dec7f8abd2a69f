"""A step's clips reach the device once, ahead of the passes, and stay for all of them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import wait
from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig, OptimConfig
from grpo.learner.update import Learner
from grpo.media.clip import Clip
from grpo.policy import uploads
from grpo.policy.uploads import Uploads, uploaded
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from tests.support import tiny
from tests.support.learners import counts_of, make_learner, moved_policy, packed

CPU = torch.device("cpu")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Clip, str]]:
    """The uploads that are made, each with the name of its thread."""
    found: list[tuple[Clip, str]] = []

    def watched(clip: Clip, device: torch.device) -> Any:
        found.append((clip, threading.current_thread().name))
        return uploaded(clip, device)

    monkeypatch.setattr(uploads, "uploaded", watched)
    return found


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_engine_and_all_passes_of_a_step_share_a_clips_patches_made_in_a_thread(
    beta: float, seen: list[tuple[Clip, str]]
) -> None:
    groups, policy = tiny.ragged_groups(), tiny.policy(seed=1)
    reference = moved_policy()
    reference.uploads = policy.uploads
    learner: Learner = make_learner(
        policy, loss=LossConfig(beta=beta), optim=OptimConfig(num_iterations=2), reference=reference
    )
    engine, asked = TransformersEngine(policy), [group.group.prompt for group in groups]
    engine.prepare(asked, 1)
    engine.generate(asked, Sampling(group_size=1, max_new_tokens=1, temperature=1.0), range(len(asked)))
    rows, watched = packed(groups[:4], tokens_per_row=600), packed(groups[4:])
    learner.update(rows, counts_of(groups), 1, watched=watched)
    clips = [group.group.prompt.clip for group in groups if group.group.prompt.clip is not None]
    assert Counter(clip for clip, _ in seen) == Counter(clips)
    assert all(name.startswith("uploads") for _, name in seen)
    # Between updates the device's memory is the engine's.
    policy.uploads.get(clips[0], CPU)
    assert seen[-1] == (clips[0], threading.current_thread().name)


def test_frames_beyond_the_limit_are_not_kept(
    seen: list[tuple[Clip, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tiny.clip(), tiny.clip()
    monkeypatch.setattr(uploads, "MAX_BYTES", first.frames_FHWC.nbytes)
    own = Uploads(tiny.family().patches_of)
    own.expect([first, second], CPU)
    for clip in (first, second, first, second):
        assert torch.equal(own.get(clip, CPU), tiny.family().patches_of(uploaded(clip, CPU)))
    assert [clip for clip, _ in seen] == [first, second, second]
    own.clear(1)
    own.expect([second], CPU)
    own.get(second, CPU)
    assert seen[-1][1].startswith("uploads")


def test_patches_whose_making_ahead_failed_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter([True, False, True, False])

    def short_of_memory(clip: Clip, device: torch.device) -> Any:
        if next(fails):
            raise torch.OutOfMemoryError("out of memory")
        return uploaded(clip, device)

    monkeypatch.setattr(uploads, "uploaded", short_of_memory)
    own, clip = Uploads(tiny.family().patches_of), tiny.clip()
    expected = tiny.family().patches_of(uploaded(clip, CPU))
    own.expect([clip], CPU)
    assert torch.equal(own.get(clip, CPU), expected)
    own.expect([clip], CPU)
    wait([own._kept[clip][0]])
    # Asked for again, it is begun again.
    assert own.expect([clip], CPU) == [clip]
    assert torch.equal(own.get(clip, CPU), expected)
    assert next(fails, None) is None


def test_clips_of_a_later_step_leave_half_of_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [tiny.clip() for _ in range(6)]
    monkeypatch.setattr(uploads, "MAX_BYTES", 4 * clips[0].frames_FHWC.nbytes)
    own = Uploads(tiny.family().patches_of)
    assert own.expect(clips[:1], CPU, step=1) == clips[:1]
    assert own.expect(clips, CPU, step=2) == clips[:2]
    assert own.expect(clips[2:], CPU) == clips[2:4]
    own.clear(1)
    assert own.expect(clips, CPU, step=2) == clips[:4]


def test_what_a_clip_can_not_give_is_said_where_it_is_needed() -> None:
    def fail() -> Any:
        raise ValueError("clip.mp4: cut off")

    own, clip = Uploads(tiny.family().patches_of), Clip(facts=tiny.clip().facts, frames=fail)
    own.expect([clip], CPU)
    with pytest.raises(ValueError, match="clip.mp4: cut off"):
        own.get(clip, CPU)
    own.clear(1)


def test_bytes_travel_and_no_patches() -> None:
    clip = tiny.clip()
    frames = uploaded(clip, CPU)
    assert frames.dtype == torch.uint8 and frames.shape == clip.frames_FHWC.shape
    patches = tiny.family().patches_of(frames)
    assert patches.dtype == torch.uint8 and patches.nbytes == frames.nbytes
    assert tiny.pixels(clip)[0].nbytes == 4 * frames.nbytes
