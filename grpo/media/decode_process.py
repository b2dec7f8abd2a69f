"""Where clips are decoded: a process that has loaded the decoder, and its forks, which read one clip at a time.

They are forks of a process of its own, never of the trainer, whose GPU and threads would not survive one. A fork takes
milliseconds where a new process would import torch for a second (it resizes frames), so that one that crashed or
hangs is soon replaced. Frames go to the trainer through a file in memory, which both have open; everything else
through a socket. All of them end with the trainer, however that ends (on Linux).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn

import numpy as np

from grpo.media.decode import MediaError
from grpo.media.reading import ClipReader

PR_SET_PDEATHSIG = 1
STATUS_S = 1.0
"""How long a worker may take to end after its socket has closed."""


def main() -> None:
    """Of the process that forks; its argument is the number of its end of a socket to the trainer."""
    _end_with_parent()
    control = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):  # the trainer is gone, or has closed
        reader = control.recv()
        control.send("ready")
        Nursery(control, reader).serve()


class Nursery:
    """Forks workers on demand, and tells how they ended."""

    def __init__(self, control: Connection, reader: ClipReader) -> None:
        self.control, self.reader = control, reader
        self.statuses: dict[int, int] = {}

    def serve(self) -> None:
        while True:
            kind, *content = self.control.recv()
            self._reap()
            self.control.send(self._fork() if kind == "fork" else self._status(*content))

    def _fork(self) -> int:
        handles = recv_handle(self.control), recv_handle(self.control)
        pid = os.fork()
        if pid == 0:
            self.control.close()
            work(Connection(handles[0]), handles[1], self.reader)
        for handle in handles:
            os.close(handle)
        return pid

    def _status(self, pid: int) -> int | None:
        """None if it does not end."""
        give_up_at = time.monotonic() + STATUS_S
        while pid not in self.statuses and time.monotonic() < give_up_at:
            time.sleep(0.005)
            self._reap()
        return self.statuses.pop(pid, None)

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # there are none
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])


def work(connection: Connection, memory: int, reader: ClipReader) -> NoReturn:
    """The life of a worker. memory: number of the file that frames are handed over in."""
    status = 1
    try:
        _end_with_parent()
        said = _catch_logs()
        while True:
            source, may_store = connection.recv()
            _serve(source, may_store, reader, connection, memory)
            is_writing = reader.disk is None or reader.disk.is_writing
            connection.send(("done", is_writing, said[:]))
            said.clear()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 0  # the trainer is gone, or has done with this worker
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(source: Any, may_store: bool, reader: ClipReader, connection: Connection, memory: int) -> None:
    """Read a clip and hand it over, and then store it: nobody waits for that."""
    try:
        read = reader.read(source)
    except MediaError as error:
        connection.send(("refused", str(error)))
        return
    transfer(os.pwrite, memory, read.clip.frames_FHWC)
    connection.send(("read", read.clip.facts, read.is_decoded, read.name))
    if may_store:
        reader.keep(read)


def transfer(move: Callable[[int, Any, int], int], memory: int, frames_FHWC: np.ndarray) -> None:
    """All bytes of the frames to or from a file, by os.pwrite or the like, which may move fewer at a time."""
    data, done = np.ascontiguousarray(frames_FHWC).data.cast("B"), 0
    while done < len(data):
        if not (moved := move(memory, data[done:], done)):
            raise OSError("the frames' file ends too early")
        done += moved


def _catch_logs() -> list[tuple[str, int, str]]:
    """What is logged from now on, as logger, level and text: the trainer says it, once for all workers."""
    said: list[tuple[str, int, str]] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.name, record.levelno, record.getMessage()))

    logging.getLogger().addHandler(Catch())
    return said


def _end_with_parent() -> None:
    """By the kernel's hand, even while a decoder runs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
