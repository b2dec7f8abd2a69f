"""Clips decoded ahead of their use by processes (`decode_pool.py`), and kept. Read `ClipLoader` first.

A clip comes from memory, else from the disk, else from its video. What happens to the cache in memory, and
what is counted, depends on the order of `prefetch` and `get` calls alone and never on which process finishes
first: from the same disk cache, the same run counts the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

from grpo.media.clip import Clip, ClipSource, MediaError, TookTooLong
from grpo.media.decode_pool import DecodeHere, DecodePool
from grpo.media.memory_cache import MemoryCache
from grpo.media.reading import ClipReader, Read


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaCounters:
    """The loader's counts of clips; every `get` adds one to one of the first three, or raises."""

    decoded: int = 0
    """The clips handed over for the first time after they were decoded."""
    disk_hits: int = 0
    """The clips handed over for the first time after they were read from the disk cache."""
    cache_hits: int = 0
    """The clips that were in memory."""
    failed: int = 0
    """The clips that could not be read, each counted once."""


class ClipLoader:
    """The home of the clips in use, each read at most once while it stays in memory.

    A clip is *pending* from the first time that it is asked for until `get` hands it over; then it counts
    against the limit of `memory`, and what was used longest ago makes room. Pending clips don't count: their
    number is the caller's choice. Any thread may call.
    """

    def __init__(
        self,
        reader: ClipReader,
        *,
        cache_gib: float,
        num_workers: int,
        timeout_s: float,
    ) -> None:
        """Start num_workers processes; with 0, clips are read in this one when asked for, without a time limit."""
        self.memory = MemoryCache(max_gib=cache_gib)
        self._pool = (
            DecodePool(reader, num_workers=num_workers, timeout_s=timeout_s)
            if num_workers
            else DecodeHere(reader)
        )
        self._lock = Lock()
        self._pending: dict[ClipSource, Future[Read]] = {}
        self._failures: dict[ClipSource, str] = {}
        self._failed: set[ClipSource] = set()
        """The clips that have ever failed, also those that were read later."""
        self._late: set[ClipSource] = set()
        """The clips that took too long when they were last tried."""
        self._to_retry: set[ClipSource] = set()
        self._decoded = 0
        self._disk_hits = 0
        self._cache_hits = 0

    def prefetch(self, sources: Iterable[ClipSource | None]) -> None:
        """Start to decode clips in the background, in this order; None, for a question without a clip, is skipped."""
        for source in sources:
            if source is None:
                continue
            with self._lock:
                if source in self._to_retry:
                    self._to_retry.remove(source)
                    del self._failures[source]
                if source not in self.memory and source not in self._failures:
                    self._request(source)

    def forget_all_but(self, sources: Iterable[ClipSource | None]) -> None:
        """Drop the clips that were prefetched and not handed over yet, except for these."""
        wanted = {*sources}
        with self._lock:
            self._pending = {key: future for key, future in self._pending.items() if key in wanted}

    def get(self, source: ClipSource) -> Clip:
        """Return the clip, waiting for it if need be. Raises MediaError, with the same message every time.

        A clip that took too long is tried once more from the next `prefetch` on: a file system may hang for a while.
        """
        with self._lock:
            if source in self._failures:
                raise MediaError(self._failures[source])
            if (clip := self.memory.get(source)) is not None:
                self._cache_hits += 1
                return clip
            future = self._request(source)
        # This waits, outside the lock so that others can go on.
        future.exception()
        with self._lock:
            return self._hand_over(source, future)

    def counters(self) -> MediaCounters:
        """Return the totals so far; a step's share is the difference of two of them."""
        with self._lock:
            return MediaCounters(
                decoded=self._decoded,
                disk_hits=self._disk_hits,
                cache_hits=self._cache_hits,
                failed=len(self._failed),
            )

    def close(self) -> None:
        """End the workers; clips that have not been read are dropped."""
        self._pool.close()

    def _request(self, key: ClipSource) -> Future[Read]:
        if key not in self._pending:
            self._pending[key] = self._pool.submit(key)
        return self._pending[key]

    def _hand_over(self, key: ClipSource, future: Future[Read]) -> Clip:
        """Settle a finished clip: the first of several who waited for it moves it into the cache."""
        is_first = self._pending.get(key) is future
        if is_first:
            del self._pending[key]
        try:
            read = future.result()
        except MediaError as error:
            if is_first:
                self._failures[key] = str(error)
                self._failed.add(key)
                if isinstance(error, TookTooLong) and key not in self._late:
                    self._late.add(key)
                    self._to_retry.add(key)
            raise MediaError(str(error)) from error
        if is_first:
            self._late.discard(key)
            self._decoded += read.is_decoded
            self._disk_hits += not read.is_decoded
            self.memory.put(key, read.clip, read.clip.frames_FHWC.nbytes)
        else:
            self._cache_hits += 1
        return read.clip
