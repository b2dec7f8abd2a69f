"""Symbolic links among the media: those that lead out of the media root are refused, unless a setting allows them.

A data set that was unpacked may have brought links of its own, to files that nobody meant to show to a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from grpo.data.errors import BadRecords, DataError
from grpo.data.hf_datasets import embedded_folder
from grpo.groups import Sample


def check_links(samples: Sequence[Sample], file: str, media_root: str | None) -> None:
    """Raise BadRecords for samples whose media are, by a link, outside of the media root.

    The root itself may be a link. Of a folder of images, each image is looked at.
    """
    own = Path(file) if os.path.isdir(file) else Path(file).parent
    root = Path(media_root) if media_root is not None else own
    insides = tuple(os.path.realpath(each) for each in (root, embedded_folder(Path(file))))
    real_folder = cache(os.path.realpath)

    @cache
    def outside(path: str) -> str | None:
        """Where a file really is, or the first such file of a folder, if that is outside."""
        folder, name = os.path.split(path)
        real = os.path.join(real_folder(folder), name)
        # One look at each file, not at each part of its path: there may be millions of images.
        real = os.path.realpath(real) if os.path.islink(real) else real
        if not any(os.path.commonpath((real, inside)) == inside for inside in insides):
            return real
        entries = _entries(real)
        return next((found for each in entries if (found := outside(each)) is not None), None)

    problems: list[DataError] = []
    good: list[Sample] = []
    for sample in samples:
        paths = [path for source in sample.sources for path in (source.video, *source.frames) if path]
        paths += sample.streams.values()
        found = next(((path, real) for path in paths if (real := outside(path)) is not None), None)
        if found is None:
            good.append(sample)
            continue
        path, real = found
        reason = f"{path} leads by a link out of the media root {root}, to {real}"
        problems.append(
            DataError(sample.source, f"{reason}; follow_links: true beside the data's path allows it")
        )
    if problems:
        raise BadRecords(problems, good)


def _entries(folder: str) -> Iterable[str]:
    """The links in a folder; none in what is no folder, or can't be looked into."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_symlink()]
    except OSError:
        return []
