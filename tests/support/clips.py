"""Clips of made-up frames, and where a sample's clip comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from grpo.groups import Sample
from grpo.media.clip import Clip, ClipFacts, ClipSource
from grpo.media.sampling import QWEN2_5_VL


def facts_of(num_frames: int, height_px: int, width_px: int, *, fps: float = 2.0, **others: Any) -> ClipFacts:
    """Facts of frames that are a constant time apart, but for the others."""
    facts = ClipFacts(
        path="noise",
        times_s=tuple(index / fps for index in range(num_frames)),
        sample_fps=fps,
        duration_s=num_frames / fps,
        height_px=height_px,
        width_px=width_px,
        patches=QWEN2_5_VL,
    )
    return replace(facts, **others)


def clip_of(frames_FHWC: np.ndarray, *, fps: float = 2.0, **others: Any) -> Clip:
    """A clip of these frames; the facts as `facts_of` makes them."""
    num_frames, height_px, width_px, _ = frames_FHWC.shape
    return Clip(facts_of(num_frames, height_px, width_px, fps=fps, **others), frames_FHWC)


def with_facts(clip: Clip, **others: Any) -> Clip:
    return Clip(replace(clip.facts, **others), clip.frames)


def source_of(sample: Sample) -> ClipSource:
    """What a sample's clip is read from, where a test knows that there is one."""
    assert sample.clip_source is not None
    return sample.clip_source


def video_of(sample: Sample) -> str:
    """The path of a sample's video, where a test knows that there is one."""
    video = source_of(sample).video
    assert video is not None
    return video
