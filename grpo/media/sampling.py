"""The rules by which a clip's frames are chosen and sized: numbers in, numbers out. Read `choose_frames` first.

The rules are those of qwen-vl-utils 0.0.14 (`smart_nframes`, `calculate_video_frame_range`, `smart_resize`,
`fetch_video`), which the models were trained with. Four things differ. A clip of one frame, which it refuses, is
repeated to fill its token in time, as the model's own processor does. A range is found by the frames' own
times; for a constant frame rate it is the same. Where frames are not evenly timed, they are chosen by time and
not by number, because the model is told that they are a constant time apart (`frames_on_display`). And
`max_pixels` may exceed the 768 tokens per frame that `fetch_video` stops at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

MAX_ASPECT_RATIO = 200
"""The largest ratio of the longer side to the shorter; qwen-vl-utils refuses frames beyond it."""

STILL_FPS = 2.0
"""The rate of a single picture, shown for half a second; qwen-vl-utils takes it for all lists without a rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchShape:
    """The shape in which a model family cuts video into tokens."""

    patch_px: int = 14
    merge: int = 2
    """The patches along each side that become one token."""
    temporal_frames: int = 2
    """The frames that become one token in time."""

    @property
    def token_px(self) -> int:
        """The side of the square that one token covers."""
        return self.patch_px * self.merge


QWEN2_5_VL = PatchShape()


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaSettings:
    """The settings of sampling and resizing; the defaults are qwen-vl-utils' own, for tokens of 28x28 pixels."""

    fps: Annotated[float, Gt(0), Lt(math.inf)] = 2.0
    """The frames sampled per second of video, within min_frames and max_frames."""
    min_frames: Annotated[int, Ge(1)] = 4
    max_frames: Annotated[int, Ge(2)] = 768
    min_pixels: Annotated[int, Ge(1)] = 128 * 28 * 28
    """The fewest pixels of one frame after resizing."""
    max_pixels: Annotated[int, Ge(1)] = 768 * 28 * 28
    """The most pixels of one frame after resizing."""
    total_pixels: Annotated[int, Ge(1)] = 90_316_800
    """The pixels of a clip: two frames, which share their tokens, may have this many, divided by half the frames.

    90 % of 128,000 tokens of 28x28. It never presses a frame below 1.05 x min_pixels.
    """
    max_tokens: Annotated[int | None, Ge(1)] = None
    """The most vision tokens of a clip. Where it has more, its frames become smaller, down to min_pixels, and then
    fewer, down to min_frames, still spread over the whole clip. None: what the other limits allow.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlan:
    """The number and the size of the frames that the model sees of a clip."""

    num_frames: int
    height_px: int
    width_px: int

    def num_tokens(self, patches: PatchShape) -> int:
        """Return the number of vision tokens."""
        per_patch = self.height_px * self.width_px // patches.token_px**2
        return self.num_frames // patches.temporal_frames * per_patch

    @property
    def num_bytes(self) -> int:
        """The bytes that the frames take in memory."""
        return self.num_frames * self.height_px * self.width_px * 3


class TooManyTokens(ValueError):
    """The error for a clip that can't be shown within media.max_tokens."""


class TooShort(ValueError):
    """The error for a clip with too few frames to show."""


def frame_range(times_s: np.ndarray, start_s: float, end_s: float | None) -> tuple[int, int]:
    """Return the first and last index of the frames that are shown from start_s up to and including end_s.

    times_s: ascending times of a file's frames. A start behind the last frame or an end before the
    start gives last < first.
    """
    first = int(np.searchsorted(times_s, start_s, side="left"))
    last = len(times_s) - 1 if end_s is None else int(np.searchsorted(times_s, end_s, side="right")) - 1
    return first, last


def clip_fps(num_frames: int, span_s: float, file_fps: float | None) -> float:
    """Return a clip's frames per second: the file's rate, unless the clip's own frames contradict it.

    span_s: from the first frame's start to the last frame's end. Containers round times (Matroska to the
    millisecond), and the file's rate doesn't, so it is better by default. With a variable frame rate it
    is an average over the file that can be far off inside the clip. Raises TooShort for frames that last no time.
    """
    if span_s <= 0:
        raise TooShort(f"the clip's frames ({num_frames}) are shown for {span_s:g} s")
    if file_fps and abs(num_frames - span_s * file_fps) <= 0.5:
        return file_fps
    return num_frames / span_s


def num_sampled_frames(
    num_frames: int,
    video_fps: float,
    settings: MediaSettings,
    *,
    temporal_frames: int = 2,
    may_repeat: bool = False,
) -> int:
    """Return how many of a clip's frames are sampled: a multiple of temporal_frames.

    may_repeat: where all frames are wanted, it may be more than there are. It may for a single frame: to the model,
    that is a picture. Raises TooShort where the clip, or max_frames, has too few frames for a single token in time.
    """
    min_frames = math.ceil(settings.min_frames / temporal_frames) * temporal_frames
    max_frames = settings.max_frames // temporal_frames * temporal_frames
    wanted = num_frames / video_fps * settings.fps
    sampled = min(max(wanted, min_frames), max_frames, num_frames)
    if (may_repeat or num_frames == 1) and sampled == num_frames:
        sampled = min(math.ceil(sampled / temporal_frames) * temporal_frames, max_frames)
    sampled = math.floor(sampled / temporal_frames) * temporal_frames
    if sampled < temporal_frames:
        raise TooShort(
            f"at least {temporal_frames} frames are needed, the clip has {num_frames} "
            f"and media.max_frames is {settings.max_frames}"
        )
    return sampled


def frame_indices(first: int, last: int, num_sampled: int) -> list[int]:
    """Return indices spread evenly from first to last, both included, each rounded to the nearest frame."""
    # torch's float32, because where an index falls halfway between two frames its rounding decides. Imported
    # here, so that settings can be read without it.
    import torch

    return torch.linspace(first, last, num_sampled).round().long().tolist()


def is_evenly_timed(times_s: np.ndarray) -> bool:
    """Whether each frame is off by at most half a frame's duration: then numbers and times choose the same frames."""
    if len(times_s) < 3:
        return True
    even_s, period_s = np.linspace(times_s[0], times_s[-1], len(times_s), retstep=True)
    return bool(np.abs(times_s - even_s).max() <= period_s / 2)


def frames_on_display(
    times_s: np.ndarray, first: int, last: int, num_sampled: int
) -> tuple[list[int], list[float]]:
    """The frames that are shown at times spread evenly over those of first to last, and these times.

    A frame shown for long may come more than once.
    """
    shown_s = np.linspace(times_s[first], times_s[last], num_sampled)
    # linspace rounds: at the time of a frame itself, that frame is meant.
    indices = np.searchsorted(times_s, shown_s + 1e-9, side="right") - 1
    return indices.tolist(), shown_s.tolist()


def sampled_fps(num_sampled: int, num_frames: int, video_fps: float) -> float:
    """Return the frames sampled per second of video."""
    return num_sampled / num_frames * video_fps


def frame_max_pixels(num_sampled: int, settings: MediaSettings) -> float:
    """The pixels that one frame may have, given how many share the clip's total."""
    share = settings.total_pixels / num_sampled * 2
    return min(settings.max_pixels, max(share, int(settings.min_pixels * 1.05)))


def resize_target(
    height_px: int, width_px: int, *, factor_px: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """Return a height and width, multiples of factor_px, with about the same shape and an area within the limits.

    Raises ValueError where one side is more than 200 times the other.
    """
    ratio = max(height_px, width_px) / min(height_px, width_px)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"{width_px}x{height_px} pixels: one side is more than {MAX_ASPECT_RATIO} times the other"
        )
    sides = (height_px, width_px)
    height, width = (max(factor_px, round(side / factor_px) * factor_px) for side in sides)
    if height * width > max_pixels:
        shrink = math.sqrt(height_px * width_px / max_pixels)
        height, width = (math.floor(side / shrink / factor_px) * factor_px for side in sides)
    elif height * width < min_pixels:
        grow = math.sqrt(min_pixels / (height_px * width_px))
        height, width = (math.ceil(side * grow / factor_px) * factor_px for side in sides)
    return height, width


def clip_frame_size(
    height_px: int, width_px: int, num_sampled: int, settings: MediaSettings, patches: PatchShape
) -> tuple[int, int]:
    """Return the height and width that every frame of a clip is resized to.

    Raises ValueError where a side would vanish: a frame too long and narrow for max_pixels, and TooManyTokens where
    so many frames of min_pixels exceed max_tokens.
    """
    max_pixels = frame_max_pixels(num_sampled, settings)
    if settings.max_tokens is not None:
        share_tokens = settings.max_tokens // (num_sampled // patches.temporal_frames)
        max_pixels = min(max_pixels, max(share_tokens * patches.token_px**2, settings.min_pixels))
    height, width = resize_target(
        height_px,
        width_px,
        factor_px=patches.token_px,
        min_pixels=settings.min_pixels,
        max_pixels=max_pixels,
    )
    if min(height, width) == 0:
        raise ValueError(
            f"{width_px}x{height_px} pixels don't fit into media.max_pixels={settings.max_pixels}"
        )
    plan = ClipPlan(num_frames=num_sampled, height_px=height, width_px=width)
    if settings.max_tokens is not None and plan.num_tokens(patches) > settings.max_tokens:
        raise TooManyTokens(
            f"{num_sampled} frames of {width}x{height} pixels are {plan.num_tokens(patches)} tokens, more than "
            f"media.max_tokens={settings.max_tokens}: raise it, or lower media.min_frames or media.min_pixels"
        )
    return height, width


def plan_clip(
    num_frames: int,
    video_fps: float,
    height_px: int,
    width_px: int,
    settings: MediaSettings,
    patches: PatchShape,
    *,
    may_repeat: bool = False,
) -> ClipPlan:
    """Plan as many frames as fps asks for, as large as fits; fewer where even the smallest would exceed max_tokens.

    num_frames, height_px, width_px: of the clip in its file. may_repeat: as for `num_sampled_frames`. Raises what
    that and `clip_frame_size` raise.
    """
    step = patches.temporal_frames
    wanted = num_sampled_frames(num_frames, video_fps, settings, temporal_frames=step, may_repeat=may_repeat)
    fewest = min(wanted, math.ceil(settings.min_frames / step) * step)
    for num_sampled in range(wanted, fewest, -step):
        try:
            height, width = clip_frame_size(height_px, width_px, num_sampled, settings, patches)
        except TooManyTokens:
            continue
        return ClipPlan(num_frames=num_sampled, height_px=height, width_px=width)
    height, width = clip_frame_size(height_px, width_px, fewest, settings, patches)
    return ClipPlan(num_frames=fewest, height_px=height, width_px=width)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenFrames:
    """The frames that are sampled, with their times and their rate."""

    indices: tuple[int, ...]
    """The frames' ascending indices; one may come more than once."""
    shown_s: tuple[float, ...]
    sample_fps: float
    plan: ClipPlan


def choose_frames(
    times_s: np.ndarray,
    start_s: float,
    end_s: float | None,
    size_px: tuple[int, int],
    settings: MediaSettings,
    patches: PatchShape,
    *,
    file_end_s: float,
    file_fps: float | None,
    are_images: bool = False,
) -> ChosenFrames:
    """The frames to sample of those shown from start_s to end_s, as times_s says.

    size_px: height and width of the file's frames. Raises what `plan_clip` raises, and TooShort if there are none.
    are_images: they were sampled from something already. Where all of them are wanted, none is left out to fill
    the last token in time, but the last one is repeated, as `fetch_video` does with lists of frames.
    """
    first, last = frame_range(times_s, start_s, end_s)
    num_frames = last - first + 1
    if num_frames < 1:
        raise TooShort("no frame is shown")
    next_s = times_s[last + 1] if last + 1 < len(times_s) else file_end_s
    fps = clip_fps(num_frames, float(next_s - times_s[first]), file_fps)
    plan = plan_clip(num_frames, fps, *size_px, settings, patches, may_repeat=are_images)
    num_sampled = plan.num_frames
    if not is_evenly_timed(times_s[first : last + 1]):
        indices, shown_s = frames_on_display(times_s, first, last, num_sampled)
        return ChosenFrames(
            indices=tuple(indices),
            shown_s=tuple(shown_s),
            sample_fps=sampled_fps(num_sampled, num_frames, fps),
            plan=plan,
        )
    distinct = min(num_sampled, num_frames)
    indices = frame_indices(first, last, distinct) + [last] * (num_sampled - distinct)
    return ChosenFrames(
        indices=tuple(indices),
        shown_s=tuple(times_s[indices].tolist()),
        sample_fps=sampled_fps(distinct, num_frames, fps),
        plan=plan,
    )


def choose_picture(
    times_s: np.ndarray, at_s: float, size_px: tuple[int, int], settings: MediaSettings, patches: PatchShape
) -> ChosenFrames:
    """The one frame that is shown at a time, repeated to fill its token in time; raises what `plan_clip` raises."""
    plan = plan_clip(1, STILL_FPS, *size_px, settings, patches)
    # A time that a frame number was divided to is rounded.
    index = max(0, int(np.searchsorted(times_s, at_s + 1e-6, side="right")) - 1)
    return ChosenFrames(
        indices=(index,) * plan.num_frames,
        shown_s=(at_s,) * plan.num_frames,
        sample_fps=STILL_FPS,
        plan=plan,
    )


def most_tokens(num_sampled: int, settings: MediaSettings, patches: PatchShape) -> int:
    """Return the most tokens that a clip of so many frames can have, whatever its shape; max_tokens left aside.

    Small frames grow to min_pixels, each side rounded up to a token: in tokens the area is below
    min + (height + width) + 1, where the sides of a shape of ratio r sum up to sqrt(min) * (sqrt(r) + 1 / sqrt(r)).
    """
    least = settings.min_pixels / patches.token_px**2
    longest = math.sqrt(MAX_ASPECT_RATIO)
    grown = least + math.sqrt(least) * (longest + 1 / longest) + 1
    shrunk = frame_max_pixels(num_sampled, settings) / patches.token_px**2
    return num_sampled // patches.temporal_frames * math.floor(max(grown, shrunk))


def most_vision_tokens(settings: MediaSettings, patches: PatchShape) -> int:
    """Return the most vision tokens that a clip of any length and shape can have.

    All numbers of frames are tried: under `total_pixels`, fewer frames may be so much larger that they have more.
    """
    step = patches.temporal_frames
    bound = max(most_tokens(count, settings, patches) for count in range(step, settings.max_frames + 1, step))
    return min(bound, settings.max_tokens or bound)
