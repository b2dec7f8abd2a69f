"""Planted secrets: what is searched for one, files that are compressed included."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def contents(file: Path) -> Iterator[bytes]:
    """A file's bytes, and what it holds in compressed form."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        yield str(pq.read_table(file).to_pylist()).encode()
        yield str(pq.read_schema(file).metadata).encode()
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from map(archive.read, archive.namelist())


def files_with(secrets: Iterable[str], folder: Path) -> list[tuple[str, str]]:
    """(file, secret) for each secret that a file below a folder holds, in its bytes or in its path."""
    wanted = [(secret, secret.encode()) for secret in secrets]
    return [
        (str(file.relative_to(folder)), secret)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        for data in (*contents(file), str(file.relative_to(folder)).encode())
        for secret, found in wanted
        if found in data
    ]
