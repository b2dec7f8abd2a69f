"""Clips as film strips: every frame that the model saw, small, in one JPEG for each clip."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from grpo.config.schema import Config
from grpo.media.clip import Clip, ClipFacts, ClipSource, MediaError
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader

LONG_SIDE_PX = 128
"""The longer side of a frame in a strip; a smaller frame stays as it is."""
COLUMNS = 16
"""The frames beside each other in a strip's picture."""
QUALITY = 82
MANY_CLIPS = 32
"""The number of clips from which on they are read by several processes, which take seconds to start."""


@dataclass(frozen=True, slots=True)
class SeenClip:
    """A clip as a run saw it: where it comes from, and the facts, by which it is known again."""

    source: ClipSource
    facts: ClipFacts

    @property
    def name(self) -> str:
        """The name of the clip's strip: the same for the same part of a file, sampled and resized alike."""
        identity = json.dumps([asdict(self.source), self.facts.as_dict()], sort_keys=True)
        return hashlib.blake2b(identity.encode(), digest_size=10).hexdigest()

    @property
    def thumbnail_px(self) -> tuple[int, int]:
        """The width and height of the clip's frames in its strip."""
        scale = min(1.0, LONG_SIDE_PX / max(self.facts.width_px, self.facts.height_px))
        return max(1, round(self.facts.width_px * scale)), max(1, round(self.facts.height_px * scale))

    def strip(self) -> dict[str, Any]:
        """Return what a page is told of the strip: its file's name, its layout, and the frames' times."""
        return {
            "name": self.name,
            "path": self.facts.path,
            "picture": self.facts.is_picture,
            # A picture's frame is there twice.
            "times": [round(time_s, 3) for time_s in self.facts.times_s][
                : 1 if self.facts.is_picture else None
            ],
            "duration": round(self.facts.duration_s, 3),
            "fps": round(self.facts.sample_fps, 3),
            "size": [self.facts.width_px, self.facts.height_px],
            "thumbnail": self.thumbnail_px,
            "columns": min(COLUMNS, self.facts.num_frames),
        }

    def check(self, clip: Clip) -> Clip:
        """Return a clip that was read again; MediaError if it is another one by now."""
        if clip.facts != self.facts:
            raise MediaError(f"{self.source.path}: not the video that the run read")
        return clip


def strip_file(folder: Path, name: str) -> Path:
    """Return the file of a strip in a page's folder."""
    return folder / "clips" / f"{name}.jpg"


def clip_reader(config: Config, seen: SeenClip) -> ClipReader:
    """Return a reader of a run's clips: from its disk cache where they are still there, else from their files."""
    has_cache = config.media.cache_disk_gib and Path(config.clip_cache).is_dir()
    disk = DiskCache(config.clip_cache, max_gib=config.media.cache_disk_gib) if has_cache else None
    if disk is not None:
        disk.is_writing = False
    return ClipReader(settings=config.media, patches=seen.facts.patches, disk=disk)


def write_strips(folder: Path, clips: Collection[SeenClip], config: Config) -> dict[str, str]:
    """Write the strips of a run's clips that are not there yet; return the reason for each that can't be read."""
    missing = [seen for seen in clips if not strip_file(folder, seen.name).exists()]
    if not missing:
        return {}
    num_workers = len(os.sched_getaffinity(0)) if len(missing) >= MANY_CLIPS else 0
    # All clips of a run are cut into tokens alike, by its model.
    reader, failed = clip_reader(config, missing[0]), {}
    with closing(
        ClipLoader(reader, cache_gib=0.0, num_workers=num_workers, timeout_s=config.media.timeout_s)
    ) as loader:
        for index, seen in enumerate(tqdm(missing, desc="film strips", unit="clip", disable=None)):
            loader.prefetch(each.source for each in missing[index : index + 2 * num_workers])
            try:
                write_strip(folder, seen, seen.check(loader.get(seen.source)))
            except MediaError as error:
                failed[seen.name] = str(error)
    return failed


def write_strip(folder: Path, seen: SeenClip, clip: Clip) -> None:
    """Write the frames of a clip as its strip, whole or not at all."""
    file = strip_file(folder, seen.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    picture(clip.frames_FHWC, seen.thumbnail_px).save(partial, "JPEG", quality=QUALITY)
    partial.replace(file)


def picture(frames_FHWC: np.ndarray, size_px: tuple[int, int]) -> Image.Image:
    """Return frames beside and below each other, each of a size (width, height)."""
    width_px, height_px = size_px
    columns = min(COLUMNS, len(frames_FHWC))
    sheet = Image.new("RGB", (columns * width_px, math.ceil(len(frames_FHWC) / columns) * height_px))
    for index, frame_HWC in enumerate(frames_FHWC):
        row, column = divmod(index, columns)
        small = Image.fromarray(frame_HWC).resize(size_px, Image.Resampling.LANCZOS)
        sheet.paste(small, (column * width_px, row * height_px))
    return sheet
