"""Files in memory, for what is too large to be copied through sockets: other processes of the user open them by path.

They lie in no folder, so nothing is left behind, however the processes end (on Linux).
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """A stretch of the bytes of a file in memory."""

    path: str
    start: int
    size: int


class MemoryFile:
    """A file in memory that lives as long as this object, or as long as a process has mapped it."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("egogrpo"), "wb")
        self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def append(self, data: Any) -> Place:
        """Append bytes, or a contiguous array's, and return where they are."""
        start, size = self._file.tell(), self._file.write(data)
        self._file.flush()
        return Place(self.path, start, size)

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        self.close()


def write(path: str, data: Any) -> Place:
    """Write bytes, or a contiguous array's, as the content of another process's file."""
    with open(path, "wb") as file:
        return Place(path, 0, file.write(data))


def read(place: Place) -> bytes:
    with open(place.path, "rb") as file:
        file.seek(place.start)
        return file.read(place.size)


def array_at(place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """Return bytes as an array that shares their memory, also after the file's end, and holds a file open."""
    return np.asarray(np.memmap(place.path, np.uint8, "r", place.start, shape))
