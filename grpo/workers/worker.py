"""The life of a worker: it runs calls of functions that were loaded before it was forked."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, NoReturn

from grpo.workers.processes import end_with_parent, rss_bytes

MAX_CALLS = 20_000
"""The calls after which a fresh fork takes a worker's place: with it go small leaks, and zombies of what was forked."""
MAX_PRINTED_CHARS = 4_000
"""How much of what a call prints is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function that workers run."""

    call: Callable[[Any], Any]
    """It takes the arguments of a call and gives its value. A coroutine function's calls run at the same time."""
    is_resident: bool = False
    """All its calls run in one worker, since it has a state or is a coroutine function."""

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call)


class Call(NamedTuple):
    """A call as it is sent to a worker."""

    id: int
    function: int
    """The function's place among those that were loaded."""
    args: bytes
    """Its pickled arguments, which are small: what is large lies in a file in memory (`memory_file.py`), since a worker
    that is stopped takes only so much."""
    limit_s: float | None = None
    """How long it may take from its start."""


class Said(NamedTuple):
    """A worker's word on a call."""

    kind: Literal["value", "raised", "cancelled"]
    call_id: int = -1
    content: bytes | str = ""
    """The pickled value, or the traceback."""
    printed: str = ""
    stays: bool = True
    """The worker takes more calls."""


def work(
    connection: Connection, functions: Sequence[Function], home: int | None, memory_bytes: float
) -> NoReturn:
    """Run calls until the supervisor closes the connection. home: the one function that lives here, if one does."""
    status = 1
    try:
        os.setsid()
        end_with_parent()
        printed = _catch_output()
        if home is not None and functions[home].is_async:
            asyncio.run(_AsyncWorker(connection, functions[home], printed).serve())
        else:
            max_calls = MAX_CALLS if home is None else sys.maxsize
            _serve(connection, functions, printed, max_calls, memory_bytes)
        status = 0
    except (EOFError, ConnectionError):
        status = 0  # the supervisor is gone, or has done with this worker
    finally:
        os._exit(status)


def _serve(
    connection: Connection,
    functions: Sequence[Function],
    printed: PrintedText,
    max_calls: int,
    memory_bytes: float,
) -> None:
    own_pid, stays, num_calls = os.getpid(), True, 0
    while stays:
        call: Call = connection.recv()
        kind, content = _outcome(functions[call.function].call, call.args)
        if os.getpid() != own_pid:
            os._exit(0)  # the function has forked, and this is the fork
        num_calls += 1
        stays = num_calls < max_calls and rss_bytes(own_pid) <= memory_bytes
        connection.send(Said(kind, call.id, content, printed.take(), stays))


def _outcome(function: Callable[[Any], Any], args: bytes) -> tuple[Literal["value", "raised"], bytes | str]:
    try:
        return "value", pickle.dumps(function(pickle.loads(args)))
    except BaseException:
        return "raised", traceback.format_exc()


class _AsyncWorker:
    """Runs many calls of one coroutine function at once, in one event loop."""

    def __init__(self, connection: Connection, function: Function, printed: PrintedText) -> None:
        self.connection, self.function, self.printed = connection, function, printed
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.cancelled: set[int] = set()
        self.pid = os.getpid()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        gone = loop.create_future()

        def receive() -> None:
            try:
                while self.connection.poll():
                    self._take(loop, self.connection.recv())
            except (EOFError, OSError):
                if not gone.done():
                    gone.set_result(None)

        loop.add_reader(self.connection.fileno(), receive)
        await gone

    def _take(self, loop: asyncio.AbstractEventLoop, message: Any) -> None:
        """Start a call, or end those whose ids are given."""
        if isinstance(message, Call):
            call = message
            self.tasks[call.id] = loop.create_task(self._run(call))
            return
        for call_id in message:
            if task := self.tasks.get(call_id):
                self.cancelled.add(call_id)
                task.cancel()
        self.connection.send(Said("cancelled"))  # in answer: this loop is alive

    async def _run(self, call: Call) -> None:
        kind, content = "value", b""
        try:
            content = pickle.dumps(await self.function.call(pickle.loads(call.args)))
        except BaseException:
            kind, content = "raised", traceback.format_exc()
        if os.getpid() != self.pid:
            os._exit(0)  # the function has forked, and this is the fork
        if call.id not in self.cancelled:
            self.connection.send(Said(kind, call.id, content, self.printed.take()))
        self.cancelled.discard(call.id)
        self.tasks.pop(call.id, None)


class PrintedText(io.StringIO):
    """What a call prints, up to a limit: megabytes of it cost nothing."""

    def fileno(self) -> int:
        return 1  # nowhere: for those who hand it on to a process

    def write(self, text: str, /) -> int:
        super().write(text[: max(0, MAX_PRINTED_CHARS - self.tell())])
        return len(text)

    def take(self) -> str:
        """What was printed since the last time."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def _catch_output() -> PrintedText:
    """Python's output is kept, up to a limit; what goes past Python is dropped."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    printed = PrintedText()
    sys.stdout = sys.stderr = printed
    return printed
