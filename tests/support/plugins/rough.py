"""Rewards that behave as rewards do sooner or later, for the tests of their containment."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from grpo.groups import Rollout
from rewards import group_reward, reward

WAYS = "raises no_number exits hangs"


@reward
def fails_at_random(rollout: Rollout, *, seed: int, frac: float, log: str, ways: str = WAYS) -> float:
    """On so large a share of completions it raises, returns no number, ends its process or hangs."""
    draw = random.Random(f"{seed} {rollout.sample.id} {rollout.logprobs}")
    # All tokens of the completions that a start probes rewards with have the same log-prob.
    if draw.random() >= frac or len({*rollout.logprobs}) < 2:
        return draw.random()
    with open(log, "a") as file:
        file.write("rewards\n")
    match draw.choice(ways.split()):
        case "raises":
            raise KeyError("at random")
        case "exits":
            os._exit(3)
        case "hangs":
            time.sleep(1000)
    return math.nan


@reward
def is_killed_once(rollout: Rollout, *, file: str) -> float:
    """1, but the first real completion is scored by a process that the system kills."""
    if len({*rollout.logprobs}) > 1 and not os.path.exists(file):
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


@reward
def length(rollout: Rollout) -> float:
    return float(len(rollout.text))


@reward
def numbers_its_calls(rollout: Rollout, *, file: str) -> float:
    """How often it has been called so far, in whichever process."""
    with open(file, "a") as calls:
        calls.write(f"{rollout.text}\n")
    return float(len(Path(file).read_text().splitlines()))


@reward
def sleeps(rollout: Rollout, *, seconds: float) -> float:
    time.sleep(seconds)
    return 1.0


@reward
def hangs_on(rollout: Rollout, *, word: str, busy: bool = False) -> float:
    while word in rollout.text:
        if not busy:
            time.sleep(0.05)
    return 1.0


@reward
def exits_on(rollout: Rollout, *, word: str) -> float:
    if word in rollout.text:
        os._exit(3)
    return 1.0


@reward
def crashes_on(rollout: Rollout, *, word: str) -> float:
    if word in rollout.text:
        ctypes.string_at(0)
    return 1.0


@reward
def forks(rollout: Rollout) -> float:
    os.fork()
    return 1.0


@reward
def starts_a_process(rollout: Rollout, *, pid_file: str) -> float:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    return 1.0


@reward
def prints_megabytes(rollout: Rollout) -> float:
    print("x" * 5_000_000)
    os.write(1, b"y" * 1_000_000)
    return 1.0


@reward
def leaks(rollout: Rollout, *, kept: list[Any] = []) -> float:  # noqa: B006
    kept.append(np.ones(30_000_000))  # 240 MB
    time.sleep(0.5)
    return 1.0


@reward
def leaks_in_a_child(rollout: Rollout, *, pid_file: str, when: str) -> float:
    """Up to 1 GB, by 40 MB at a time."""
    left = "os.fork() and os._exit(0)" if when == "left behind" else ""
    code = (
        f"import os, time\n{left}\nopen({pid_file!r}, 'w').write(str(os.getpid()))\nkept = []\n"
        "while time.sleep(0.05) is None:\n    len(kept) < 25 and kept.append(b'x' * 40_000_000)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=when != "in the call")
    if when == "in the call":
        child.wait()
    return 1.0


@reward
def changes_its_arguments(rollout: Rollout) -> float:
    rollout.sample.columns["weights"].append(3)
    return float(len(rollout.sample.columns["weights"]))


@reward
def counts_weights(rollout: Rollout) -> float:
    return float(len(rollout.sample.columns["weights"]))


@reward
def brightness(rollout: Rollout) -> float:
    assert rollout.clip is not None
    return float(rollout.clip.frames_FHWC.mean())


@reward
async def waits(rollout: Rollout, *, seconds: float, word: str = "") -> float:
    if word and word in rollout.text:
        time.sleep(600)  # blocks the event loop
    await asyncio.sleep(seconds)
    return 1.0


@group_reward
async def ranks(rollouts: tuple[Rollout, ...]) -> list[float]:
    await asyncio.sleep(0)
    texts = sorted(rollout.text for rollout in rollouts)
    return [float(texts.index(rollout.text)) for rollout in rollouts]


class Counter:
    """Numbers its calls; a second object of it would start again at 1."""

    def __init__(self, *, start: float = 0.0) -> None:
        self.count = start

    @reward
    def __call__(self, rollout: Rollout) -> float:
        self.count += 1
        return self.count


class AsyncCounter:
    def __init__(self) -> None:
        self.running = self.most = 0

    @reward
    async def __call__(self, rollout: Rollout) -> float:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.2)
        self.running -= 1
        return float(self.most)


def chat(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def reads_content(completions, **kwargs):  # type: ignore[no-untyped-def]
    return [float(len(completion[0]["content"])) for completion in completions]


def plain(completions, **kwargs):  # type: ignore[no-untyped-def]
    return [float(len(completion)) for completion in completions]


class HangsOn:
    """An object that hangs on a word; its other calls wait behind that one."""

    def __init__(self, *, word: str) -> None:
        self.word = word

    @reward
    def __call__(self, rollout: Rollout) -> float:
        while self.word in rollout.text:
            time.sleep(0.05)
        return 1.0


@reward
async def forks_async(rollout: Rollout) -> float:
    os.fork()
    return float(len(rollout.text))


@reward
async def is_cancelled(rollout: Rollout) -> float:
    raise asyncio.CancelledError("by a library")


@reward
def leaves_a_daemon(rollout: Rollout, *, pid_file: str) -> float:
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    Path(pid_file).write_text(str(child.pid))
    return 1.0


@reward
def starts_many(rollout: Rollout, *, num_processes: int) -> float:
    """Starts processes that leave their session and their parent, and two of which go on forking."""
    for n in range(num_processes):
        if os.fork():
            os.wait()
            continue
        os.setsid()
        while os.fork() == 0:
            time.sleep(600 if n > 1 else 0.01)
        os._exit(0)
    time.sleep(600)
    return 1.0
