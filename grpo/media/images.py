"""Clips read from image files: the frames of a video one by one, a folder of them, or a single picture.

They obey the rules of videos (`sampling.py`): a folder of 30 frames per second is sampled, and of frames that were
sampled already all are taken. A single picture is sized like a clip of one frame, and shown to the model as an image;
its frame is repeated to fill a token in time, as the vision towers repeat an image.

qwen-vl-utils resizes the frames of a list with Pillow, whose bicubic rounds after each axis, and to multiples of 56
pixels in place of 28. Here every clip is resized alike; at the same size, values differ by a level or two of 255.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from grpo.media import sampling
from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.frames import blamed_on, check_exists, check_size, make_clip
from grpo.media.sampling import QWEN2_5_VL, ChosenFrames, MediaSettings, PatchShape

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""The endings of images in a folder; other files there are passed over."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""The formats that are looked for in a file, whatever its name ends in."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits per channel; depth maps have 16, and no place in a clip."""
PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""The exceptions that Pillow's parsers raise on damaged files."""


def read_images(source: ClipSource, *, settings: MediaSettings, patches: PatchShape = QWEN2_5_VL) -> Clip:
    """Return the clip, sampled and resized; only the images that it takes are opened. Raises MediaError."""
    chosen, files, clip_end_s = choose_images(source, settings, patches)
    frames = (_upright_rgb(file) for file in files)
    part_s = (source.start_s, clip_end_s)
    return make_clip(source.path, frames, chosen, part_s, settings, patches, is_picture=source.is_picture)


def choose_images(
    source: ClipSource, settings: MediaSettings, patches: PatchShape
) -> tuple[ChosenFrames, list[str], float]:
    """Return the chosen images, their files, and the clip's end; only a header is read. Raises MediaError."""
    files = _list_files(source)
    times_s, file_end_s = _times(source, len(files))
    if source.start_s >= file_end_s:
        late = f"the clip starts at {source.start_s:g} s, but the images end at {file_end_s:g} s"
        raise MediaError(f"{source.path}: {late}") from sampling.TooShort(late)
    clip_end_s = file_end_s if source.end_s is None else min(source.end_s, file_end_s)
    with blamed_on(f"{source.path} from {source.start_s:g} s to {clip_end_s:g} s", ValueError):
        chosen = sampling.choose_frames(
            times_s,
            source.start_s,
            source.end_s,
            _size_px(files[0]),
            settings,
            patches,
            file_end_s=file_end_s,
            file_fps=None,
            are_images=True,
        )
    return chosen, [files[index] for index in chosen.indices], clip_end_s


def probe_images(source: ClipSource) -> None:
    """Raise MediaError unless the first image opens and there are as many images as times; decode nothing."""
    files = _list_files(source)
    _times(source, len(files))
    _size_px(files[0])


def images_end_s(source: ClipSource) -> float:
    """Return the time at which the last image stops being shown. Raises MediaError."""
    return _times(source, len(_list_files(source)))[1]


def _list_files(source: ClipSource) -> Sequence[str]:
    """Return the images' paths in order: those of a folder by name, numbers in it by their value."""
    folder = source.frames[0]
    if len(source.frames) > 1 or not os.path.isdir(folder):
        return source.frames
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(ENDINGS)]
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read: {error.strerror}") from error
    if not names:
        raise MediaError(f"{folder}: no images in this folder ({', '.join(ENDINGS)})")
    return [os.path.join(folder, name) for name in sorted(names, key=_in_numbers)]


def _in_numbers(name: str) -> tuple[list[str | int], str]:
    # Text and digits in turn.
    parts: list[str | int] = [*re.split("([0-9]+)", name)]
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, name


def _times(source: ClipSource, num_images: int) -> tuple[np.ndarray, float]:
    """Return the time of each image, and the time at which the last one stops being shown."""
    if source.frame_times_s:
        times_s = np.array(source.frame_times_s)
        if len(times_s) != num_images:
            raise MediaError(f"{source.path}: {num_images} images, but times for {len(times_s)}")
        period_s = (times_s[-1] - times_s[0]) / (num_images - 1) if num_images > 1 else 1 / sampling.STILL_FPS
        return times_s, float(times_s[-1] + period_s)
    if source.frame_fps is None and num_images > 1:
        raise MediaError(f"{source.path}: nothing says when its {num_images} images are shown")
    fps = source.frame_fps or sampling.STILL_FPS
    return np.arange(num_images) / fps, num_images / fps


def _size_px(file: str) -> tuple[int, int]:
    """Return the height and width as the header has them, before any rotation, as with videos."""
    with blamed_on(f"{file}: cannot be read as an image", *PILLOW_ERRORS), _open(file) as image:
        return image.height, image.width


def _upright_rgb(file: str) -> np.ndarray:
    """Return an image as a viewer shows it: turned as its camera was held, and on white where it is transparent."""
    with blamed_on(f"{file}: cannot be read as an image", *PILLOW_ERRORS), _open(file) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return np.array(image.convert("RGB"))


def _open(file: str) -> Image.Image:
    """Open an image by its header; the pixels are read later."""
    check_exists(file)
    with warnings.catch_warnings():
        # Pillow's own limit, above ours.
        warnings.simplefilter("ignore")
        image = Image.open(file, formats=FORMATS)
    try:
        check_size(file, *image.size)
        if image.mode not in MODES:
            raise MediaError(f"{file}: pixels of the kind {image.mode}, not of 8 bits per channel")
    except MediaError:
        image.close()
        raise
    return image
