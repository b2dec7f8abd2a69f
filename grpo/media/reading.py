"""Clips read from wherever they are: the disk cache, else their video or their images."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, fields, replace

from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.decode import plan_clip, probe, read_clip
from grpo.media.disk_cache import DiskCache, entry_name
from grpo.media.frame_table import frame_table, reaches
from grpo.media.images import choose_images, images_end_s, probe_images, read_images
from grpo.media.sampling import QWEN2_5_VL, ClipPlan, MediaSettings, PatchShape

logger = logging.getLogger(__name__)


def read_source(source: ClipSource, *, settings: MediaSettings, patches: PatchShape = QWEN2_5_VL) -> Clip:
    """Return the clip, of a video or of images, sampled and resized. Raises MediaError."""
    read = read_images if source.video is None else read_clip
    return read(source, settings=settings, patches=patches)


def plan_source(source: ClipSource, *, settings: MediaSettings, patches: PatchShape = QWEN2_5_VL) -> ClipPlan:
    """Return the number and size of the frames that `read_source` gives. Raises MediaError."""
    if source.video is None:
        return choose_images(source, settings, patches)[0].plan
    return plan_clip(source, settings=settings, patches=patches)


def probe_source(source: ClipSource) -> None:
    """Raise MediaError unless the video, or the first image, opens; decode nothing."""
    probe_images(source) if source.video is None else probe(source)


def shown_end_s(source: ClipSource) -> float:
    """Return the second at which a clip ends: end_s, or where its video or its images end before. Raises MediaError.

    Only the header of a video that is long enough is read.
    """
    asked_s = source.end_s
    if source.video is None:
        last_s = images_end_s(source)
    elif asked_s is not None and reaches(source.video, asked_s):
        return asked_s
    else:
        last_s = frame_table(source.video).end_s
    return last_s if asked_s is None else min(asked_s, last_s)


@dataclass(frozen=True, slots=True)
class Read:
    clip: Clip
    is_decoded: bool
    """Whether the clip was decoded; if not, it comes from the disk cache."""
    name: str | None
    """The name of the clip's entry in the disk cache; None without one."""


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """A reader of clips, small enough to be sent to the processes that decode."""

    settings: MediaSettings
    patches: PatchShape = QWEN2_5_VL
    disk: DiskCache | None = None

    def __post_init__(self) -> None:
        # A config's settings would take the config, and all that it imports, along.
        plain = {field.name: getattr(self.settings, field.name) for field in fields(MediaSettings)}
        object.__setattr__(self, "settings", MediaSettings(**plain))

    def read(self, source: ClipSource) -> Read:
        """Read a clip. Raises MediaError and nothing else, so that no damaged file ends the run."""
        try:
            return self._read(source)
        except MediaError:
            raise
        except Exception as error:
            # As text: the process that decodes hands on no more of what is logged.
            logger.warning("%s: unexpected in reading it:\n%s", source.path, traceback.format_exc())
            raise MediaError(f"{source.path}: {describe(error)}") from error

    def _read(self, source: ClipSource) -> Read:
        if self.disk is None:
            return Read(self.decode(source), is_decoded=True, name=None)
        name = entry_name(source, self.settings, self.patches)
        if (stored := self.disk.load(name, source.path)) is not None:
            return Read(stored, is_decoded=False, name=name)
        return Read(self.decode(source), is_decoded=True, name=name)

    def decode(self, source: ClipSource) -> Clip:
        return read_source(source, settings=self.settings, patches=self.patches)

    def keep(self, read: Read) -> None:
        """Store what was decoded in the disk cache, if there is one."""
        if self.disk is not None and read.is_decoded and read.name is not None:
            self.disk.store(read.name, read.clip)


@dataclass(frozen=True, kw_only=True)
class StoringReader(ClipReader):
    """A reader that stores a clip and hands over one pixel of it, to fill the disk cache."""

    def read(self, source: ClipSource) -> Read:
        read = super().read(source)
        super().keep(read)
        facts = replace(read.clip.facts, times_s=read.clip.times_s[:1], height_px=1, width_px=1)
        return replace(read, clip=Clip(facts, read.clip.frames_FHWC[:1, :1, :1]))

    def keep(self, read: Read) -> None:
        """Do nothing, since `read` has stored the clip."""


def describe(error: Exception) -> str:
    """Return an exception as one line, with its kind, since many messages say little without."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
