"""Clips of made-up frames, and where a sample's clip comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from grpo.groups import Sample
from grpo.media.clip import Clip, ClipFacts, ClipSource
from grpo.media.sampling import QWEN2_5_VL


def facts_of(*shape_FHWC: int, fps: float = 2.0, path: str = "noise", **others: Any) -> ClipFacts:
    """Facts of frames that are a constant time apart, in the patches of Qwen2.5-VL, but for the others."""
    return replace(ClipFacts.at_fps(shape_FHWC, fps, path=path, patches=QWEN2_5_VL), **others)


def clip_of(frames_FHWC: np.ndarray, **facts: Any) -> Clip:
    """A clip of these frames; its facts as `facts_of` makes them."""
    return Clip(facts_of(*frames_FHWC.shape, **facts), frames_FHWC)


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
