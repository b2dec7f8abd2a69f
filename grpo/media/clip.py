"""A clip as every part of the program sees it: where it comes from, its facts, and the sampled frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from grpo.media.sampling import PatchShape


class MediaError(ValueError):
    """The error for a clip that cannot be read: one line with the path and the reason."""


class TookTooLong(MediaError):
    """The error for a clip that was not read in time, which may be the fault of a slow file system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFacts:
    """The facts about a clip besides its pixels, which are nearly all of its bytes."""

    path: str
    """The file or folder that messages name."""
    times_s: tuple[float, ...]
    """The time at which each frame is shown, in seconds from the clip's start."""
    sample_fps: float
    """Frames sampled per second of video, as qwen-vl-utils defines it: F / (frames in the clip) * fps."""
    duration_s: float
    height_px: int
    width_px: int
    patches: PatchShape
    """The shape in which the model cuts the frames into tokens."""
    is_picture: bool = False
    """Whether it is a single picture, which a model is shown as an image and not as a video of one frame."""

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    @classmethod
    def at_fps(cls, shape_FHWC: tuple[int, ...], fps: float, *, path: str, patches: PatchShape) -> ClipFacts:
        """The facts of frames that are a constant time apart and were not sampled from others."""
        num_frames, height_px, width_px, _ = shape_FHWC
        return cls(
            path=path,
            times_s=tuple(index / fps for index in range(num_frames)),
            sample_fps=fps,
            duration_s=num_frames / fps,
            height_px=height_px,
            width_px=width_px,
            patches=patches,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the facts in plain values, as JSON and Parquet take them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "patches": asdict(self.patches)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipFacts:
        """Return the facts that `as_dict` gave these values of; tuples may have become lists meanwhile."""
        nested = {"times_s": tuple(values["times_s"]), "patches": PatchShape(**values["patches"])}
        return cls(**{**values, **nested})


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, sampled and resized once, and the facts about them.

    Nothing downstream samples or resizes again: whoever needs pixels, times or the number of vision
    tokens takes them from here.
    """

    facts: ClipFacts
    frames: np.ndarray | Callable[[], np.ndarray]
    """The frames, or a function that gets them when they are first looked at."""

    def __post_init__(self) -> None:
        if not callable(self.frames):
            self._checked(self.frames)

    @cached_property
    def frames_FHWC(self) -> np.ndarray:
        """The frames as uint8 RGB; F is a multiple of the temporal patch, H and W of the merged spatial patch.

        Raises what the function that gets them raises.
        """
        return self._checked(self.frames()) if callable(self.frames) else self.frames

    @cached_property
    def digest(self) -> str:
        """The digest of the frames' bytes."""
        return hashlib.blake2b(np.ascontiguousarray(self.frames_FHWC).data, digest_size=20).hexdigest()

    @property
    def path(self) -> str:
        return self.facts.path

    @property
    def times_s(self) -> tuple[float, ...]:
        return self.facts.times_s

    @property
    def sample_fps(self) -> float:
        return self.facts.sample_fps

    @property
    def duration_s(self) -> float:
        return self.facts.duration_s

    @property
    def num_frames(self) -> int:
        return self.facts.num_frames

    @property
    def height_px(self) -> int:
        return self.facts.height_px

    @property
    def width_px(self) -> int:
        return self.facts.width_px

    @property
    def patches(self) -> PatchShape:
        return self.facts.patches

    @property
    def is_picture(self) -> bool:
        return self.facts.is_picture

    def _checked(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Return the frames, read-only from now on, after comparing them with the facts."""
        facts = self.facts
        assert frames_FHWC.dtype == np.uint8 and facts.num_frames > 0
        assert frames_FHWC.shape == (facts.num_frames, facts.height_px, facts.width_px, 3)
        frames_FHWC.setflags(write=False)
        return frames_FHWC


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSource:
    """Where a clip comes from: a part of a video file, or of images that are shown one after another."""

    video: str | None = None
    """The path of the video file; None for images."""
    frames: tuple[str, ...] = ()
    """The paths of image files in their order, or of the one folder that holds them; empty for a video."""
    frame_fps: float | None = None
    """The number of images per second, if they are a constant time apart."""
    frame_times_s: tuple[float, ...] = ()
    """The time of each image, on the clock of start_s; a single picture has neither times nor a frame_fps."""
    start_s: float = 0.0
    """The second at which the clip starts in the file, or on the clock of its images."""
    end_s: float | None = None
    """The second at which the clip ends in the file; None for the file's end. Where it starts: the frame shown then."""

    def __post_init__(self) -> None:
        assert (self.video is None) == bool(self.frames), "a clip is of a video or of images"

    @property
    def path(self) -> str:
        """The file or folder that messages name."""
        return self.frames[0] if self.video is None else self.video

    @property
    def is_picture(self) -> bool:
        """Whether it is a single picture: a file that is shown at no time, or the frame at a moment of a video."""
        if self.video is not None:
            return self.start_s == self.end_s
        return len(self.frames) == 1 and self.frame_fps is None and not self.frame_times_s


Shown = Clip | Sequence[Clip] | None
"""What a question shows: its clip, or all of several in order; None: nothing."""
