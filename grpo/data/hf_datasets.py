"""Hugging Face data sets on disk: parquet files, a folder of them, or what `Dataset.save_to_disk` wrote.

Their rows are records like those of any other file, so every reader takes them. Images and videos that a table holds
itself are written to the folder `<table>.media`, and a row names these files in their place.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grpo.data.errors import DataError

SAVED = ("state.json", "dataset_dict.json")
"""The files that `save_to_disk` leaves in the folder of a data set, and of several splits."""
SIGNATURES = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF|\x1aE\xdf\xa3|.{4}ftyp", re.DOTALL)
"""The first bytes of images and videos."""
SPECIAL = re.compile(r"binary|\bfloat\b")
"""The types of columns whose values are not taken as they are; those of single precision are called float."""
LARGEST_SINGLE = 3.4e38
ROWS_AT_ONCE = 256


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file or a data set's folder, in order. ValueError if there are none."""
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return _plain_rows(_saved(path), embedded_folder(path))
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("no parquet files in this folder, and no data set written by save_to_disk")
    return _plain_rows((table for file in files for table in _parquet(file)), embedded_folder(path))


def embedded_folder(path: Path) -> Path:
    """The folder for the media files that are embedded in a table."""
    return path.with_name(f"{path.name}.media")


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(file), f"not readable as parquet: {' '.join(str(error).split())}") from None


def _saved(folder: Path) -> Iterator[Any]:
    try:
        import datasets
    except ImportError:
        raise ValueError("needs the package datasets: pip install datasets") from None

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        raise ValueError(f"holds several splits: name one, {folder}/{next(iter(data))}")
    # As Arrow tables: rows would come with their media decoded.
    yield from data.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)


def _plain_rows(tables: Iterator[Any], media: Path) -> Iterator[dict[str, Any]]:
    for table in tables:
        special = [field.name for field in table.schema if SPECIAL.search(str(field.type))]
        for row in table.to_pylist():
            yield row | {name: _plain(row[name], media) for name in special}


def _plain(value: Any, media: Path) -> Any:
    """The value with paths in place of images and videos, and single-precision numbers as the decimals that they mean.

    Such a 2.7 is 2.700000047683716 in double precision. Other bytes stay, to be refused by name.
    """
    match value:
        case {"bytes": bytes(content), "path": _}:
            return _written(content, media)
        case {"bytes": None, "path": path}:
            return path
        case bytes() if SIGNATURES.match(value):
            return _written(value, media)
        case float() if abs(value) < LARGEST_SINGLE and (single := np.float32(value)) == value:
            return float(str(single))
        case dict():
            return {key: _plain(part, media) for key, part in value.items()}
        case list():
            return [_plain(part, media) for part in value]
    return value


def _written(content: bytes, media: Path) -> str:
    """The path of a file with this content, named after it, which is written unless it is there."""
    path = media / hashlib.blake2b(content, digest_size=16).hexdigest()
    if not path.exists():
        aside = media / f"{path.name}.{os.getpid()}"
        try:
            media.mkdir(exist_ok=True)
            aside.write_bytes(content)
            # Whole or not at all: other processes may read the same table.
            aside.replace(path)
        except OSError as error:
            raise DataError(str(media), f"embedded media can't be written here: {error.strerror}") from None
    return str(path.absolute())
