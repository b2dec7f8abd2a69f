"""The loop of a worker, which runs calls of functions that were loaded before it was forked. Read `work` first."""

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

from grpo.workers.processes import adopt_orphans, end_with_parent, rss_bytes

MAX_CALLS = 20_000
"""The calls after which a worker is replaced by a fresh fork, without the small leaks and zombies of the old one."""
MAX_PRINTED_CHARS = 4_000
"""The most that is kept of what a call prints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function that workers run."""

    call: Callable[[Any], Any]
    """The function from a call's arguments to its value. A coroutine function's calls run at the same time."""
    is_resident: bool = False
    """Whether all calls of the function run in one worker, since it has a state or is a coroutine function."""
    about: Any = None
    """What the trainer is told of the function, in a form that can be pickled."""

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call)


class Call(NamedTuple):
    """A call as it is sent to a worker."""

    id: int
    function: int
    """The function's place among those that were loaded."""
    args: bytes
    """The call's pickled arguments, which must be small: a stopped worker's socket takes only so much. Large data lies
    in a file in memory (`memory_file.py`)."""
    limit_s: float | None = None
    """The seconds that the call may take from its start; None without a limit."""


class Said(NamedTuple):
    """A worker's message about a call."""

    kind: Literal["value", "raised", "cancelled"]
    call_id: int = -1
    content: bytes | str = ""
    """The call's pickled value, or its traceback."""
    printed: str = ""
    stays: bool = True
    """Whether the worker takes more calls."""


def work(
    connection: Connection, functions: Sequence[Function], home: int | None, memory_bytes: float
) -> NoReturn:
    """Run calls until the supervisor closes the connection. home: the one function that lives here, if one does."""
    status = 1
    try:
        os.setsid()
        end_with_parent()
        adopt_orphans()
        printed = _catch_output()
        if home is not None and functions[home].is_async:
            asyncio.run(_AsyncWorker(connection, functions[home], printed).serve())
        else:
            max_calls = MAX_CALLS if home is None else sys.maxsize
            _serve(connection, functions, printed, max_calls, memory_bytes)
        status = 0
    except (EOFError, ConnectionError):
        # The supervisor is gone, or has no more use for this worker.
        status = 0
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
            # The function has forked, and this is the fork.
            os._exit(0)
        num_calls += 1
        stays = num_calls < max_calls and rss_bytes(own_pid) <= memory_bytes
        connection.send(Said(kind, call.id, content, printed.take(), stays))


def _outcome(function: Callable[[Any], Any], args: bytes) -> tuple[Literal["value", "raised"], bytes | str]:
    try:
        return "value", pickle.dumps(function(pickle.loads(args)))
    except BaseException:
        return "raised", traceback.format_exc()


class _AsyncWorker:
    """A worker that runs many calls of one coroutine function at once, in one event loop."""

    def __init__(self, connection: Connection, function: Function, printed: PrintedText) -> None:
        self.connection, self.function, self.printed = connection, function, printed
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.cancelled: set[int] = set()
        self.pid = os.getpid()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        gone = loop.create_future()

        def receive() -> None:
            if os.getpid() != self.pid:
                # A call has forked, and this is the fork, which must not take the next call.
                os._exit(0)
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
        # The answer tells the supervisor that this event loop is alive.
        self.connection.send(Said("cancelled"))

    async def _run(self, call: Call) -> None:
        kind, content = "value", b""
        try:
            content = pickle.dumps(await self.function.call(pickle.loads(call.args)))
        except BaseException:
            kind, content = "raised", traceback.format_exc()
        if os.getpid() != self.pid:
            # The function has forked, and this is the fork.
            os._exit(0)
        if call.id not in self.cancelled:
            self.connection.send(Said(kind, call.id, content, self.printed.take()))
        self.cancelled.discard(call.id)
        self.tasks.pop(call.id, None)


class PrintedText(io.StringIO):
    """A text stream that keeps what a call prints up to a limit, so that megabytes of it cost nothing."""

    def fileno(self) -> int:
        # /dev/null, for code that hands the descriptor on to a process.
        return 1

    def write(self, text: str, /) -> int:
        super().write(text[: max(0, MAX_PRINTED_CHARS - self.tell())])
        return len(text)

    def take(self) -> str:
        """Return what was printed since the last call of `take`."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def _catch_output() -> PrintedText:
    """Redirect Python's output into a stream that is returned; what is printed by other code is dropped."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    printed = PrintedText()
    sys.stdout = sys.stderr = printed
    return printed
