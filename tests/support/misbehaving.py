"""Readers of clips that misbehave, for the processes of `test_decode_pool.py` and `test_loader.py`.

In a file of their own: what those processes import should be little.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from grpo.media.clip import Clip, ClipSource
from grpo.media.reading import ClipReader


@dataclass(frozen=True, kw_only=True)
class Recording(ClipReader):
    """Writes down, a line each, which videos it decodes, and waits for a file to appear first, if told to."""

    log: str
    gate: str | None = None
    delays_s: dict[str, float] = field(default_factory=dict)

    def decode(self, source: ClipSource) -> Clip:
        with open(self.log, "a") as file:
            file.write(f"{source.video}\n")
        while self.gate is not None and not os.path.exists(self.gate):
            time.sleep(0.01)
        time.sleep(self.delays_s.get(source.path, 0.0))
        return super().decode(source)


@dataclass(frozen=True, kw_only=True)
class Misbehaving(ClipReader):
    """What a video is called says what happens to its process."""

    once: str = ""
    """Folder in which it is remembered what has happened already."""

    def decode(self, source: ClipSource) -> Clip:
        name = Path(source.path).stem
        if name.startswith("late_"):  # so many times
            with Path(self.once, name).open("a") as tries:
                tries.write("x")
                if tries.tell() <= int(name.removeprefix("late_")):
                    tries.flush()
                    time.sleep(1000)
        elif name.startswith("once_"):
            seen = Path(self.once, name)
            if not seen.exists():
                seen.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif name == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "exit":
            os._exit(3)
        elif name == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif name == "hang":
            time.sleep(1000)
        elif name == "bug":
            raise ZeroDivisionError("by\nnought")
        return super().decode(source)
