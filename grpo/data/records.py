"""The common part of the readers, each of which states how its format is recognised and how records become samples.

Every error names the file and the line or, counted from 1, the record.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.data.errors import BadRecords, DataError, NoSuchFile, placed, used_before
from grpo.data.fields import Record, as_text, shown
from grpo.data.files import Unfold, records
from grpo.data.hf_datasets import embedded_folder
from grpo.groups import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a record: where it comes from, and what its paths and names are relative to."""

    source: str
    """The file and its line or record, for messages."""
    file: Path
    root: Path
    """The folder that media paths start from."""
    number: int
    """The number of the line or record, from 1."""
    beside: Any = None
    """The contents of files that belong to the data set's file, if its reader needs some."""
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The remarks about all records of the file, each with the names of those that it is about."""

    def id(self, own: str) -> str:
        """The record's name, under the file's: data sets count from 0, and several are mixed."""
        return f"{self.file.stem}/{own}"

    def remark(self, text: str, name: str | None = None) -> None:
        """Log a remark about the record when the file was read, in one line with all records that have the same one."""
        self.remarks[text].append(name or self.source)

    def media(self, path: str) -> str:
        """A path as the record has it, joined to the root; ValueError if it leads out of there, or is none.

        Links are not looked at here, but by `links.check_links`.
        """
        if "\0" in path:
            raise ValueError(f"{shown(path)} can't be a path: it has a null character")
        path = path.removeprefix("file://")
        if "://" in path:
            raise ValueError(f"{shown(path)} is a web address: download it, and name the file")
        joined = os.path.normpath(self.root / path)
        if "\\" in path and not os.path.exists(joined):
            raise ValueError(f"{shown(path)} has backslashes: folders are separated by / in paths")
        if not _is_inside(joined, self.root) and not _is_inside(joined, embedded_folder(self.file)):
            absolute = "; with media_root: / paths may be absolute" if os.path.isabs(path) else ""
            raise ValueError(f"{shown(path)} leads out of the media root {self.root}{absolute}")
        return joined

    def joined_video(self, folder: str) -> str | None:
        """The video that a folder of frames was joined into: `frames.mp4` beside `frames`; None if there is none."""
        video = f"{self.media(folder)}.mp4"
        return video if os.path.isfile(video) else None

    def images(self, value: object, key: str) -> tuple[str, ...]:
        """A list of paths, joined to the root."""
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{key!r} must be a list of images, not {shown(value)}")
        return tuple(self.media(as_text(path, key)) for path in value)


Translate = Callable[[Record, Place], Iterable[Sample]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A format of data sets. Called with a file, it gives the samples of all records, in order."""

    translate: Translate
    """The samples of a record. ValueError says what is wrong with it."""
    is_like: Callable[[Record], bool]
    """Whether a file whose first record, or whose one JSON object, is this one is in the format."""
    unfold: Unfold | None = None
    """The list of records in a file that is one JSON value; None where the file is a list, or has a record a line."""
    beside: Callable[[Path], Any] | None = None
    """The contents of files that belong to a data set's file: `Place.beside`."""

    def __call__(
        self, path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
    ) -> list[Sample]:
        """The samples of a file; an id that comes twice is refused.

        media_root None: the file's folder, or the data set's own where it is one.
        Raises FileNotFoundError, and ValueError as `place: what`: for records `BadRecords`, after all were read.
        """
        file = Path(path)
        beside = self.beside(file) if self.beside else None
        if not file.exists():
            raise NoSuchFile(str(path), "no such dataset file")
        own_folder = file if file.is_dir() else file.parent
        root = own_folder if media_root is None else Path(media_root)
        samples: dict[str, Sample] = {}
        problems: list[DataError] = []
        remarks: dict[str, list[str]] = defaultdict(list)
        try:
            for number, source, value in records(file, self.unfold):
                try:
                    place = Place(source, file, root, number, beside, remarks)
                    _add(samples, self.translate(_as_record(value()), place))
                except ValueError as error:
                    problems.append(placed(error, source))
        except ValueError as error:
            # Of the file's form: what lies behind can't be told apart.
            problems.append(placed(error, str(file)))
        for remark, names in remarks.items():
            logger.warning("%s: %s: %d, e.g. %s", file, remark, len(names), names[0])
        if problems:
            raise BadRecords(problems, [*samples.values()])
        if not samples:
            raise DataError(str(path), "no records")
        return [*samples.values()]


def _is_inside(path: str, folder: Path) -> bool:
    return os.path.relpath(path, folder).split(os.sep)[0] not in ("..", ".")


def _as_record(value: Any) -> Record:
    if type(value) is not dict:
        raise ValueError(f"a record is a JSON object, not {shown(value)}")
    return value


def _add(samples: dict[str, Sample], new: Iterable[Sample]) -> None:
    for sample in new:
        if sample.id in samples:
            raise used_before(sample, samples[sample.id])
        samples[sample.id] = sample
