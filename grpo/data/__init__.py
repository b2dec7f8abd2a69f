"""Data sets become samples: here a file's reader is chosen, and each of `readers/` is a format.

The other files are what readers are made of, and what is checked of samples before a run.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from grpo.data.check import check_media
from grpo.data.errors import BadRecords, DataError, NoSuchFile, placed, used_before
from grpo.data.fields import Has, Record, shown
from grpo.data.files import first
from grpo.data.links import check_links
from grpo.data.overlap import check_overlap, namesakes
from grpo.data.readers import FORMATS, NOT_QUESTIONS
from grpo.groups import MAX_MEDIA, Sample
from grpo.media.clip import ClipSource
from grpo.media.places import PLACE

__all__ = [
    "READERS", "Questions", "check_links", "check_media", "check_overlap", "load_samples", "load_sets", "namesakes",
    "read_records", "timed",
]  # fmt: skip

logger = logging.getLogger(__name__)


def read_auto(path: str, media_root: str | None) -> list[Sample]:
    """The samples of a file in any of the formats, after it was said in which it is."""
    try:
        head = _head(Path(path))
        name = _format(Path(path), head)
    except ValueError as error:
        raise placed(error, path) from None
    if name is None:
        raise DataError(path, f"in none of the known formats: {_unlike(head)} (docs/datasets.md)")
    logger.warning("%s: read with the reader %s", path, name)
    return FORMATS[name](path, media_root)


READERS: dict[str, Callable[[str, str | None], list[Sample]]] = {**FORMATS, "auto": read_auto}


def _head(file: Path) -> Record | None:
    """The first readable record of a file, or its one object; None if there is none to recognise a format by."""
    if not file.exists():
        raise NoSuchFile(str(file), "no such dataset file")
    head = first(file)
    return head if type(head) is dict else None


def _format(file: Path, head: Record | None) -> str | None:
    if head is None:
        return None
    for what, is_like in NOT_QUESTIONS.items():
        if is_like(head):
            raise DataError(str(file), f"holds {what}, not questions with answers: write these first")
    return next((name for name, reader in FORMATS.items() if reader.is_like(head)), None)


def _unlike(head: Record | None) -> str:
    """What a file's first record has, and the one or two formats that it is nearest to, with the keys that it lacks."""
    if head is None:
        return "its first record is no object with keys"
    names = {reader.is_like: name for name, reader in reversed(FORMATS.items())}
    lacking = {
        name: min((is_like.lacking(head, keys) for keys in is_like.sets), key=len)
        for is_like, name in names.items()
        if isinstance(is_like, Has)
    }
    shares = {name: len(keys) / len(FORMATS[name].is_like.sets[0]) for name, keys in lacking.items()}
    near = [name for name in sorted(shares, key=lambda name: shares[name])[:2] if shares[name] < 1]
    hints = (f"{name}, but for {', '.join(map(repr, lacking[name]))}" for name in near)
    hint = f"it is like {' or '.join(hints)}" if near else "it is like none of them"
    return f"its first record has {', '.join(map(shown, head))}; {hint}"


class Questions(Protocol):
    """Where questions and their media are, as a config says it."""

    @property
    def path(self) -> str: ...
    @property
    def media_root(self) -> str | None: ...
    @property
    def follow_links(self) -> bool: ...
    @property
    def frame_fps(self) -> float | None: ...


class Dataset(Questions, Protocol):
    """A data set's entry in the config, as far as readers need it."""

    @property
    def reader(self) -> str: ...


def load_samples(datasets: Iterable[Dataset]) -> list[Sample]:
    """The samples of all datasets, one after another; an id names one sample among them all."""
    return [sample for samples in load_sets(datasets) for sample in samples]


def load_sets(datasets: Iterable[Dataset]) -> list[list[Sample]]:
    """Each dataset's samples; an id names one sample among them all."""
    seen: dict[str, Sample] = {}
    sets: list[list[Sample]] = []
    for dataset in datasets:
        sets.append([timed(sample, dataset.frame_fps) for sample in read_records(dataset)])
        for sample in sets[-1]:
            if sample.id in seen:
                is_namesake = sample.id.startswith(f"{Path(dataset.path).stem}/")
                hint = (
                    ": ids begin with the file's name, so give one of the files another"
                    if is_namesake
                    else ""
                )
                raise used_before(sample, seen[sample.id], hint)
            seen[sample.id] = sample
    return sets


def read_records(dataset: Dataset) -> list[Sample]:
    """The samples as the data set's reader gives them; those of images may still have no times (`timed`).

    The error for records in another reader's format names that reader.
    """
    reader = _reader(dataset.reader)
    try:
        samples = reader(dataset.path, dataset.media_root)
    except (BadRecords, DataError) as error:
        other = None if isinstance(error, NoSuchFile) else _other_format(dataset)
        if other is None:
            raise
        entry = f"{{reader: {other}, path: {dataset.path}}}"
        reason = f"its records are for another reader: write {entry}, or reader: auto"
        raise DataError(dataset.path, f"{reason} ({dataset.reader} says: {error})") from None
    if not dataset.follow_links:
        check_links(samples, dataset.path, dataset.media_root)
    return samples


def _other_format(dataset: Dataset) -> str | None:
    """The reader for a file that is not in the format of the data set's reader; None if there is none."""
    try:
        head = _head(Path(dataset.path))
    except ValueError:
        # What is no JSON is in no format.
        return None
    own = FORMATS.get(dataset.reader)
    return None if own is None or head is None or own.is_like(head) else _format(Path(dataset.path), head)


def timed(sample: Sample, frame_fps: float | None) -> Sample:
    """The sample with the data set's frame rate, if its record has several images and states no rate of its own.

    Image files without a rate are frames of one clip for a data set that has one; frames of videos stay pictures.
    """
    are_files = all(each.is_picture and each.video is None for each in sample.media)
    if frame_fps is not None and len(sample.media) > 1 and are_files:
        return as_frames(sample, frame_fps)
    if len(sample.media) > MAX_MEDIA:
        reason = f"{len(sample.media)} media in a question: there may be {MAX_MEDIA}"
        raise DataError(sample.source, f"{reason}; with frame_fps, pictures are the frames of one clip")
    source = sample.clip_source
    if source is None or sample.media or source.frame_fps is not None or source.frame_times_s:
        return sample
    is_timeless = len(source.frames) > 1 or any(map(os.path.isdir, source.frames))
    if frame_fps is None and is_timeless:
        reason = "nothing says when its frames are shown: set frame_fps beside the data set's path"
        raise DataError(sample.source, reason)
    return replace(sample, clip_source=replace(source, frame_fps=frame_fps)) if source.frames else sample


def as_frames(sample: Sample, frame_fps: float) -> Sample:
    """A question about several pictures as one about the clip that they are the frames of, which stands first."""
    frames = tuple(path for source in sample.media for path in source.frames)
    clip_source = ClipSource(frames=frames, frame_fps=frame_fps)
    question, *options = (
        re.sub(rf"{PLACE.pattern}\s*", "", text) for text in (sample.question, *sample.options)
    )
    options = tuple(map(str.strip, options))
    if not all(options):
        reason = "pictures as options can't be the frames of one clip: leave frame_fps out"
        raise DataError(sample.source, reason)
    return replace(sample, question=question, options=options, clip_source=clip_source, media=())


def _reader(name: str) -> Callable[[str, str | None], list[Sample]]:
    if name not in READERS:
        close = get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(READERS)}"
        raise ValueError(f"unknown reader {name!r}: {hint}")
    return READERS[name]
