"""A clip as every part of the program sees it: the sampled frames and when they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


class MediaError(ValueError):
    """A clip that cannot be read: one line with the path and the reason."""


class TookTooLong(MediaError):
    """A clip that was not read in time, which may be another's fault."""


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True, eq=False)
class Clip:
    """Frames of a video, sampled and resized once.

    Nothing downstream samples or resizes again: whoever needs pixels, times or the number of vision
    tokens takes them from here.
    """

    path: str
    frames_FHWC: np.ndarray
    """uint8 RGB; F is a multiple of the temporal patch, H and W of the merged spatial patch."""
    times_s: tuple[float, ...]
    """When each frame is shown, in seconds from the clip's start."""
    sample_fps: float
    """Frames sampled per second of video, as qwen-vl-utils defines it: F / (frames in the clip) * fps."""
    duration_s: float

    def __post_init__(self) -> None:
        assert self.frames_FHWC.dtype == np.uint8 and self.frames_FHWC.ndim == 4
        assert len(self.times_s) == len(self.frames_FHWC) > 0
        self.frames_FHWC.setflags(write=False)

    @property
    def num_frames(self) -> int:
        return len(self.frames_FHWC)

    @property
    def height_px(self) -> int:
        return self.frames_FHWC.shape[1]

    @property
    def width_px(self) -> int:
        return self.frames_FHWC.shape[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSource:
    """Where a clip comes from: a part of a video file, or of images that are shown one after another."""

    video: str | None = None
    """Path of the video file; None for images."""
    frames: tuple[str, ...] = ()
    """In place of a video: paths of image files in their order, or of the one folder that holds them."""
    frame_fps: float | None = None
    """Images per second, if they are a constant time apart."""
    frame_times_s: tuple[float, ...] = ()
    """When each image is shown, on the clock of start_s; neither this nor frame_fps for a single picture."""
    start_s: float = 0.0
    """Where the clip starts in the file, or on the clock of its images."""
    end_s: float | None = None
    """Where the clip ends in the file; None for the file's end."""

    def __post_init__(self) -> None:
        assert (self.video is None) == bool(self.frames), "a clip is of a video or of images"

    @property
    def path(self) -> str:
        """The file or folder that messages name."""
        return self.frames[0] if self.video is None else self.video


class LazyClip:
    """A clip whose frames are fetched when somebody looks at them, if anybody does.

    Rewards get one: most read only times, and frames are all but the whole of a rollout's bytes.
    """

    def __init__(
        self,
        *,
        path: str,
        times_s: tuple[float, ...],
        sample_fps: float,
        duration_s: float,
        height_px: int,
        width_px: int,
        load_frames: Callable[[], np.ndarray],
    ) -> None:
        self.path, self.times_s = path, times_s
        self.sample_fps, self.duration_s = sample_fps, duration_s
        self.height_px, self.width_px = height_px, width_px
        self._load_frames = load_frames

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    @cached_property
    def frames_FHWC(self) -> np.ndarray:
        """As in `Clip`; raises what the loading raises."""
        return self._load_frames()
