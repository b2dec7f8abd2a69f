"""Clips read by worker processes (`grpo/workers/`): decoders crash and hang. Frames come through files in memory.

A clip whose worker dies is tried once more. One that takes longer than the time limit (a clip too long, a file system
that hangs) is refused. A clip is stored in the disk cache after it was handed over, since nobody waits for that.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from grpo.media.clip import Clip, ClipSource, MediaError, TookTooLong
from grpo.media.reading import ClipReader, Read, describe
from grpo.workers.memory_file import MemoryFile, array_at, write
from grpo.workers.pool import CallFailed, Pool, PoolLost
from grpo.workers.worker import Function

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A worker's answer to one job."""

    read: Read | str | None
    """The clip, with its frames in a file in memory, or why it can't be read; None if one was to be stored."""
    is_writing: bool
    """Whether the disk cache still takes clips."""
    logged: list[tuple[str, int, str]]
    """The messages logged meanwhile, as logger, level and text: the trainer logs them, once for all workers."""


class DecodePool:
    """A pool of num_workers processes that read clips. Any thread may submit."""

    def __init__(self, reader: ClipReader, *, num_workers: int, timeout_s: float) -> None:
        self._timeout_s, self._may_store = timeout_s, reader.disk is not None
        self._logged: set[str] = set()
        self._pool = Pool(
            "the processes that decode clips",
            partial(load_functions, reader),
            base_workers=num_workers,
            max_workers=num_workers,
        )
        self._lock, self._is_closed = threading.Lock(), False
        self._queue: SimpleQueue[tuple[ClipSource, Future[Read]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve_all, name="clips", daemon=True) for _ in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pids(self) -> list[int]:
        """The workers' process ids at the moment."""
        return self._pool.pids

    def submit(self, source: ClipSource) -> Future[Read]:
        """Return a future of the clip, which raises MediaError if it can't be read, PoolLost in a closed pool."""
        future: Future[Read] = Future()
        # Behind what ends the threads nobody would read it.
        with self._lock:
            if not self._is_closed:
                self._queue.put((source, future))
                return future
        future.set_exception(PoolLost("the pool of the processes that decode clips is closed"))
        return future

    def close(self) -> None:
        """End the processes, also those that are reading; clips still in the queue are not read."""
        with self._lock:
            self._is_closed = True
        self._pool.close()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve_all(self) -> None:
        """Read clips from the queue, one after another; a None in it, as `close` puts there, ends the thread."""
        while (asked := self._queue.get()) is not None:
            self._serve(*asked)

    def _serve(self, source: ClipSource, future: Future[Read]) -> None:
        memory = MemoryFile()
        try:
            in_file = self._read(source, memory.path)
            future.set_result(_take_over(in_file))
        except Exception as error:
            # For the one who waits for the clip.
            future.set_exception(error)
        else:
            if self._may_store and in_file.is_decoded:
                self._store(in_file)
        finally:
            memory.close()

    def _read(self, source: ClipSource, path: str) -> Read:
        try:
            read = self._ask((source, path), source.path)
        except CallFailed as error:
            if error.kind == "late":
                reason = f"not read within media.timeout_s={self._timeout_s:g}"
                raise TookTooLong(f"{source.path}: {reason}") from None
            raise MediaError(f"{source.path}: the process that decoded it {error}, 2 times") from None
        if not isinstance(read, Read):
            raise MediaError(read)
        return read

    def _store(self, read: Read) -> None:
        try:
            self._ask(read, read.clip.path)
        except CallFailed as error:
            self._may_store = False
            why = "takes too long" if error.kind == "late" else f"failed ({error})"
            logger.warning("media.cache_dir: storing a clip %s; going on without storing clips", why)
        except PoolLost:
            # Whoever waits for a clip is told.
            pass

    def _ask(self, job: Any, label: str) -> Read | str | None:
        answer: Answer = self._pool.submit(0, job, limit_s=self._timeout_s, label=label).result()
        self._may_store &= answer.is_writing
        for name, level, text in answer.logged:
            if text not in self._logged:
                logging.getLogger(name).log(level, text)
                self._logged.add(text)
        return answer.read


class DecodeHere:
    """A stand-in for the pool that reads in the caller's own process and thread, at once and without a time limit."""

    def __init__(self, reader: ClipReader) -> None:
        self._reader = reader

    def submit(self, source: ClipSource) -> Future[Read]:
        future: Future[Read] = Future()
        try:
            read = self._reader.read(source)
            self._reader.keep(read)
            future.set_result(read)
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Do nothing, since no process was started."""


def _take_over(in_file: Read) -> Read:
    """Return the clip with frames of this process's own."""
    clip = in_file.clip
    try:
        # Not mapped: every mapping holds one of the files that a process may have open.
        return replace(in_file, clip=Clip(clip.facts, clip.frames_FHWC.copy()))
    except Exception as error:
        # No memory for it, say.
        raise MediaError(f"{clip.path}: its frames could not be taken over: {describe(error)}") from error


def load_functions(reader: ClipReader) -> list[Function]:
    """Return the one function that the workers run."""
    # Before the workers are forked, so that they share it.
    import torch

    # Several clips are read at the same time already.
    torch.set_num_threads(1)
    return [Function(call=partial(_answer, reader, _catch_logs()))]


def _answer(
    reader: ClipReader, logged: list[tuple[str, int, str]], job: tuple[ClipSource, str] | Read
) -> Answer:
    """Read a clip into a file in memory, or store one from there."""
    read = reader.keep(job) if isinstance(job, Read) else _read_into(reader, *job)
    answer = Answer(read, reader.disk is None or reader.disk.is_writing, logged[:])
    logged.clear()
    return answer


def _read_into(reader: ClipReader, source: ClipSource, path: str) -> Read | str:
    try:
        read = reader.read(source)
    except MediaError as error:
        return str(error)
    frames_FHWC = np.ascontiguousarray(read.clip.frames_FHWC)
    in_file = partial(array_at, write(path, frames_FHWC), frames_FHWC.shape)
    return replace(read, clip=Clip(read.clip.facts, in_file))


def _catch_logs() -> list[tuple[str, int, str]]:
    """Return a list that everything logged from now on is added to."""
    logged: list[tuple[str, int, str]] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append((record.name, record.levelno, record.getMessage()))

    logging.getLogger().addHandler(Catch())
    return logged
