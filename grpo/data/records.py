"""From a data set's file to its samples: what the readers share.

A reader is one function from a record to samples (`Translate`). The file's form is found by its name:
`.jsonl` holds a record in each line, `.json` a list of them, `.parquet` (or a folder) a table, see
`hf_datasets.py`. Every error names the file and the line or, counted from 1, the record.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Never

from grpo.data.errors import BadRecords, DataError, NoSuchFile, placed, used_before
from grpo.data.fields import Record, as_text, shown
from grpo.groups import Sample

SPACE = re.compile(r"[ \t\n\r]*")


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

    def id(self, own: str) -> str:
        """The record's name, under the file's: data sets count from 0, and several are mixed."""
        return f"{self.file.stem}/{own}"

    def media(self, path: str) -> str:
        """A path as the record has it, joined to the root; ValueError if it leads out of there, or is none.

        Links in the folders are followed wherever they lead: whoever owns the folders put them there, not the record.
        """
        if "\0" in path:
            raise ValueError(f"{shown(path)} can't be a path: it has a null character")
        joined = os.path.normpath(self.root / path)
        if os.path.relpath(joined, self.root).split(os.sep)[0] in ("..", "."):
            raise ValueError(f"{shown(path)} leads out of the media root {self.root}")
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


def read_samples(
    path: str | os.PathLike[str],
    media_root: str | os.PathLike[str] | None = None,
    *,
    translate: Translate,
    key: str | None = None,
    lines: bool = False,
) -> list[Sample]:
    """The samples of all records, in order; an id that comes twice is refused.

    media_root None: the file's folder, or the data set's own where it is one.
    key: the records are the list under this key of one JSON object.
    lines: JSON Lines, whatever the file is called.
    Raises FileNotFoundError, and ValueError as `place: what`: for records `BadRecords`, after all were read.
    """
    file = Path(path)
    if not (file.is_file() or file.is_dir() and not lines):
        raise NoSuchFile(str(path), "no such dataset file")
    own_folder = file if file.is_dir() else file.parent
    root = own_folder if media_root is None else Path(media_root)
    samples: dict[str, Sample] = {}
    problems: list[DataError] = []
    lines = lines or file.suffix == ".jsonl"
    try:
        for number, read in enumerate(_records(file, key=key, lines=lines), start=1):
            if read is None:
                continue
            source = f"{file}:{number}" if lines else f"{file}: record {number}"
            try:
                _add(samples, translate(_as_record(read()), Place(source, file, root, number)))
            except ValueError as error:
                problems.append(placed(error, source))
    except ValueError as error:  # of the file's form: what lies behind can't be told apart
        problems.append(placed(error, str(file)))
    if problems:
        raise BadRecords(problems, [*samples.values()])
    if not samples:
        raise DataError(str(path), "no records")
    return [*samples.values()]


def _as_record(value: Any) -> Record:
    if type(value) is not dict:
        raise ValueError(f"a record is a JSON object, not {shown(value)}")
    return value


def _add(samples: dict[str, Sample], new: Iterable[Sample]) -> None:
    for sample in new:
        if sample.id in samples:
            raise used_before(sample, samples[sample.id])
        samples[sample.id] = sample


def load_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    if not path.is_file():
        raise NoSuchFile(str(path), "no such file")
    try:
        value = parse(path.read_bytes())
        if type(value) is not dict:
            raise ValueError(f"expected a JSON object, not {shown(value)}")
    except ValueError as error:
        raise DataError(str(path), str(error)) from None
    return value


def parse(content: bytes) -> Any:
    """JSON without what Python adds to it (NaN, keys that are there twice); ValueError in one line."""
    return _decoded(_DECODER.decode, _text(content))


def _records(file: Path, *, key: str | None, lines: bool) -> Iterator[Callable[[], Any] | None]:
    """A function for each record that gives its value or raises what is wrong with it alone; None for an empty line."""
    if lines:
        with open(
            file, "rb"
        ) as opened:  # bytes: a line ends at \n and nowhere else, and broken text is its own fault
            for line in opened:
                yield partial(parse, line) if line.strip() else None
    elif file.is_dir() or file.suffix == ".parquet":
        from grpo.data.hf_datasets import rows  # late: pyarrow, and datasets for folders

        yield from (partial(_plain, row) for row in rows(file))
    elif key is not None:
        yield from (partial(_same, value) for value in _listed(file, key))
    else:
        yield from _of_list(_text(file.read_bytes()))


def _same(value: Any) -> Any:
    return value


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Columns are stored with the rollouts as JSON: bytes, dates and NaN are found now and not then."""
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds what JSON cannot: {error}") from None
    return row


def _listed(file: Path, key: str) -> list[Any]:
    values = load_object(file).get(key)
    if type(values) is not list:
        raise ValueError(f"{key!r} must be a list of records, not {shown(values)}")
    return values


def _of_list(content: str) -> Iterator[Callable[[], Any]]:
    """The records of a JSON list one by one, so that an error of one is said with its number."""
    at = _after(content, 0, "[")
    is_over = content[at : at + 1] == "]"
    while not is_over:
        try:
            value, end = _decoded(_DECODER.raw_decode, content, at)
        except ValueError:
            yield partial(_decoded, _DECODER.raw_decode, content, at)
            return  # what lies behind can't be told apart
        yield partial(_same, value)
        at = _skip(content, end)
        is_over = content[at : at + 1] == "]"
        at = at if is_over else _after(content, at, ",")
    if (end := _skip(content, at + 1)) != len(content):
        raise ValueError(f"not readable as JSON: text behind the list, {shown(content[end:])}")


def _after(content: str, at: int, mark: str) -> int:
    at = _skip(content, at)
    if content[at : at + 1] != mark:
        line = content.count("\n", 0, at) + 1
        raise ValueError(
            f"expected a JSON list of records: {mark!r} at line {line}, not {shown(content[at : at + 20])}"
        )
    return _skip(content, at + 1)


def _skip(content: str, at: int) -> int:
    match = SPACE.match(content, at)
    assert match is not None
    return match.end()


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def _decoded(decode: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return decode(*arguments)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not readable as JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("not readable as JSON: nested too deeply") from None


def _refuse_constant(constant: str) -> Never:
    raise ValueError(f"not readable as JSON: {constant} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"not readable as JSON: {shown(digits)} is too large a number")
    return number


_DECODER = json.JSONDecoder(
    parse_float=_finite, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
)
