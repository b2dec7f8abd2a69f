"""From a data set's file to its records, in whatever form they are written.

JSON is told by its first character: `[` begins a list of records, `{` a record in each line, or one object that holds
them all. Other forms are told by the name: `.csv` has a header, `.txt` a record in each line, `.parquet` (or a folder)
is a table, see `hf_datasets.py`. Everything is UTF-8, whatever the locale.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Never

from grpo.data.errors import DataError, NoSuchFile, placed
from grpo.data.fields import shown

Form = Literal["table", "csv", "text", "lines", "list", "object"]
Value = Callable[[], Any]
"""A function that gives a record's value, or raises what is wrong with that record alone."""
Unfold = Callable[[Any], object]
"""A function that finds the list of records in a file's one JSON value."""

SPACE = re.compile(r"[ \t\n\r]*")
LFS_POINTER = b"version https://git-lfs"


def records(file: Path, unfold: Unfold | None = None) -> Iterator[tuple[int, str, Value]]:
    """The number of each record, its place for messages, and its value; empty lines are counted and skipped."""
    form = form_of(file)
    by_line = form in ("lines", "text")
    for number, value in enumerate(_values(file, form, unfold), start=1):
        if value is not None:
            yield number, f"{file}:{number}" if by_line else f"{file}: record {number}", value


def first(file: Path) -> Any:
    """The first record of a file that can be read, or all of it if it is one JSON object."""
    if form_of(file) == "object":
        return load_object(file)
    broken: DataError | None = None
    for _, place, value in records(file):
        try:
            return value()
        except ValueError as error:
            broken = broken or placed(error, place)
    if broken is not None:
        raise broken
    return None


def form_of(file: Path) -> Form:
    if file.is_dir():
        return "table"
    with open(file, "rb") as opened:
        head = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(LFS_POINTER):
            raise DataError(str(file), "a pointer of Git LFS in place of the file: type git lfs pull")
        if not head and not opened.read(1):
            raise DataError(str(file), "the file is empty")
        opened.seek(0)
        has_lines = head.startswith(b"{") and (
            file.suffix != ".json" or _second_line(opened).startswith(b"{")
        )
    if file.suffix == ".parquet":
        return "table"
    if head.startswith((b"[", b"{")):
        return "list" if head.startswith(b"[") else "lines" if has_lines else "object"
    return "csv" if file.suffix == ".csv" else "text" if file.suffix == ".txt" else "lines"


def _second_line(opened: IO[bytes]) -> bytes:
    """The second line that is not empty."""
    lines = (line.strip() for line in opened if line.strip())
    return next(islice(lines, 1, None), b"")


def _values(file: Path, form: Form, unfold: Unfold | None) -> Iterator[Value | None]:
    if form == "table":
        # Late: pyarrow, and datasets for folders.
        from grpo.data.hf_datasets import rows

        yield from (partial(_plain, row) for row in rows(file))
    elif form == "lines":
        # As bytes: a line ends at \n and nowhere else, and text that is no UTF-8 is the fault of its line alone.
        with open(file, "rb") as opened:
            for line in opened:
                # Without its end, behind which an error would be on a line 2.
                yield partial(parse, line.rstrip(b"\r\n")) if line.strip() else None
    elif form == "text":
        for line in _text(file.read_bytes()).split("\n"):
            yield partial(_same, {"line": line.strip()}) if line.strip() else None
    elif form == "csv":
        yield from _csv_rows(_text(file.read_bytes()))
    elif unfold is not None:
        values = unfold(parse(file.read_bytes()))
        if type(values) is not list:
            raise ValueError(f"expected a list of records, not {shown(values)}")
        yield from (partial(_same, value) for value in values)
    else:
        yield from _of_list(_text(file.read_bytes()))


def load_object(path: Path) -> dict[str, Any]:
    """The one object that a JSON file holds."""
    if not path.is_file():
        raise NoSuchFile(str(path), "no such file")
    try:
        return as_object(parse(path.read_bytes()))
    except ValueError as error:
        raise DataError(str(path), str(error)) from None


def as_object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"expected a JSON object, not {shown(value)}")
    return value


def under(key: str) -> Unfold:
    """A function that finds the records of a JSON object that lists them under this key."""

    def unfold(value: Any) -> object:
        values = as_object(value).get(key)
        if type(values) is not list:
            raise ValueError(f"{key!r} must be a list of records, not {shown(values)}")
        return values

    return unfold


def parse(content: bytes) -> Any:
    """The JSON value, without what Python adds to JSON (NaN, keys that are there twice); ValueError in one line."""
    text = _text(content)
    return _valid_unicode(_decoded(_DECODER.decode, text), text)


def _same(value: Any) -> Any:
    return value


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row, whose columns are stored with the rollouts as JSON: bytes, dates and NaN are found now and not then."""
    for key, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {key!r} holds what JSON cannot: {error}; leave the column out"
            ) from None
    return row


def _csv_rows(text: str) -> Iterator[Value]:
    try:
        for row in csv.DictReader(text.splitlines(keepends=True), strict=True):
            yield partial(_whole, row)
    except csv.Error as error:
        raise ValueError(f"not readable as CSV: {error}") from None


def _whole(row: dict[Any, Any]) -> dict[str, str]:
    if None in row or None in row.values():
        raise ValueError("has not as many fields as the header")
    return row


def _of_list(content: str) -> Iterator[Value]:
    """The records of a JSON list one by one, so that an error of one is said with its number."""
    at, mark = _mark(content, 0, "[")
    if content[at : at + 1] == "]":
        at, mark = _mark(content, at, "]")
    while mark != "]":
        start = at
        try:
            value, at = _decoded(_DECODER.raw_decode, content, start)
        except ValueError:
            yield partial(_decoded, _DECODER.raw_decode, content, start)
            # What lies behind can't be told apart.
            return
        yield partial(_valid_unicode, value, content[start:at])
        at, mark = _mark(content, at, ",]")
    if at != len(content):
        raise ValueError(f"not readable as JSON: text behind the list, {shown(content[at:])}")


def _mark(content: str, at: int, marks: str) -> tuple[int, str]:
    """The position behind the next mark of the list and the spaces around it, and which of the marks it is."""
    at = _skip(content, at)
    if (mark := content[at : at + 1]) not in [*marks]:
        line = content.count("\n", 0, at) + 1
        raise ValueError(
            f"expected a JSON list of records: {marks[0]!r} at line {line}, not {shown(content[at : at + 20])}"
        )
    return _skip(content, at + 1), mark


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


def _valid_unicode(value: Any, text: str) -> Any:
    """The value, unless it holds half of a surrogate pair: JSON can spell one, but no file or tokenizer takes it."""
    if "\\ud" in text or "\\uD" in text:
        for key, part in value.items() if type(value) is dict else [("a text", value)]:
            try:
                json.dumps([key, part], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ValueError(f"{shown(key)} is not valid Unicode: {shown(part)}") from None
    return value


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
