"""Steps that videos and images share on their way to a `Clip`: their files and frames are checked, and resized."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np

from grpo.media import sampling
from grpo.media.clip import Clip, ClipFacts, MediaError
from grpo.media.sampling import ChosenFrames, MediaSettings, PatchShape

MAX_SOURCE_PIXELS = 2 * 7680 * 4320
"""The most pixels of a stored frame, which takes 15 bytes per pixel while it is resized."""


def make_clip(
    path: str,
    frames: Iterator[np.ndarray],
    chosen: ChosenFrames,
    part_s: tuple[float, float],
    settings: MediaSettings,
    patches: PatchShape,
    *,
    is_picture: bool = False,
) -> Clip:
    """Return the clip of the chosen frames, each resized as it comes: full-size frames would fill the memory.

    part_s: where in the file the clip starts and ends. Raises MediaError.
    """
    frames_FHWC = resize_all(path, frames, len(chosen.indices), settings, patches)
    start_s, end_s = part_s
    facts = ClipFacts(
        path=path,
        times_s=tuple(time_s - start_s for time_s in chosen.shown_s),
        sample_fps=chosen.sample_fps,
        duration_s=end_s - start_s,
        height_px=frames_FHWC.shape[1],
        width_px=frames_FHWC.shape[2],
        patches=patches,
        is_picture=is_picture,
    )
    return Clip(facts, frames_FHWC)


def resize_all(
    path: str, frames: Iterator[np.ndarray], num_frames: int, settings: MediaSettings, patches: PatchShape
) -> np.ndarray:
    """Return a clip's frames at the size that the settings give them; MediaError if they are of several sizes."""
    first_HWC = next(frames)
    with blamed_on(path, ValueError):
        full_height, full_width, _ = first_HWC.shape
        height, width = sampling.clip_frame_size(full_height, full_width, num_frames, settings, patches)
    frames_FHWC = np.empty((num_frames, height, width, 3), np.uint8)
    for slot, frame_HWC in enumerate(chain([first_HWC], frames)):
        if frame_HWC.shape != first_HWC.shape:
            raise MediaError(f"{path}: the frame size changes inside the clip")
        frames_FHWC[slot] = resize(frame_HWC, height, width)
    return frames_FHWC


def resize(frame_HWC: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Resize a uint8 frame by bicubic with antialiasing, to the same values as torchvision's for tensors."""
    if frame_HWC.shape[:2] == (height_px, width_px):
        return frame_HWC
    # Late: settings, reports and commands' arguments are read without torch, which takes seconds to import.
    import torch
    import torch.nn.functional as F

    frame_1CHW = torch.from_numpy(frame_HWC).permute(2, 0, 1).unsqueeze(0).float()
    resized_1CHW = F.interpolate(frame_1CHW, size=(height_px, width_px), mode="bicubic", antialias=True)
    # Bicubic overshoots at edges: without the clamp, 256 would become 0.
    resized_CHW = resized_1CHW[0].clamp_(0, 255).round_().to(torch.uint8)
    return resized_CHW.permute(1, 2, 0).numpy()


def check_size(path: str, width_px: int, height_px: int) -> None:
    """Raise MediaError for larger frames than any camera's.

    A file of a few bytes can claim to hold any number of pixels, and memory would be taken for them.
    """
    if width_px * height_px > MAX_SOURCE_PIXELS:
        raise MediaError(
            f"{path}: {width_px}x{height_px} pixels are more than {MAX_SOURCE_PIXELS:,} (two of 8K)"
        )


def check_exists(path: str) -> None:
    """Raise MediaError unless there is a file that may be looked at."""
    if not os.path.isfile(path):
        try:
            os.stat(path)
        except PermissionError as error:
            raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
        except OSError as error:
            raise MediaError(f"{path}: no such file") from error
        # A pipe or a device may keep its reader waiting for ever.
        raise MediaError(f"{path}: is a folder, pipe or device, not a file")


@contextmanager
def blamed_on(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into a MediaError that begins with `where`."""
    try:
        yield
    except MediaError:
        raise
    except kinds as error:
        raise MediaError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
