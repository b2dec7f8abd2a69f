"""The identity of a media file: what tells it from others, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

IDENTITY_BYTES = 64 * 1024
"""The bytes of a video's start, and as many of its end, that are read."""


Identity = tuple[int, int, str]
"""A file's size in bytes, its time of change in ns, and a digest of its ends."""


def identity(path: str) -> Identity:
    """Return a file's identity; OSError if it can't be read."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, ends_digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def ends_digest(path: str, mtime_ns: int, size_bytes: int) -> str:
    """Return a digest of a file's first and last bytes: with the size, as good as one of all, and faster to read."""
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(IDENTITY_BYTES), digest_size=16)
        file.seek(max(0, size_bytes - IDENTITY_BYTES))
        digest.update(file.read(IDENTITY_BYTES))
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def whole_digest(path: str, mtime_ns: int, size_bytes: int) -> str:
    """Return a digest of all of a file, for one whose ends can be those of another of its size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
