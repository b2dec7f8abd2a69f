"""The cache of a process's clips in memory, their frames and features alike, under one limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any


class MemoryCache:
    """A cache of at most max_gib of values; those used longest ago make room. Any thread may call."""

    def __init__(self, *, max_gib: float) -> None:
        self._max_bytes = int(max_gib * 2**30)
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._num_bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def get(self, key: Hashable) -> Any | None:
        """Return a value that is kept, and mark it as used last; None if it is not kept."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Any, num_bytes: int) -> None:
        """Keep a value, unless it is larger than the whole cache."""
        with self._lock:
            if num_bytes > self._max_bytes or key in self._entries:
                return
            self._entries[key] = value, num_bytes
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                _, (_, oldest_bytes) = self._entries.popitem(last=False)
                self._num_bytes -= oldest_bytes
