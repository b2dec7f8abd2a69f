"""What a sample's clip is read from, for tests that know that there is one."""

from __future__ import annotations

from grpo.groups import Sample
from grpo.media.clip import ClipSource


def source_of(sample: Sample) -> ClipSource:
    assert sample.clip_source is not None
    return sample.clip_source


def video_of(sample: Sample) -> str:
    video = source_of(sample).video
    assert video is not None
    return video
