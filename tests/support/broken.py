"""What machines do to a run, done to a process that is about to become one: each function is a start's `before`."""

from __future__ import annotations

import ctypes
import errno
import itertools
import math
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grpo.learner import update
from grpo.media.clip import ClipSource
from grpo.media.decode_pool import DecodePool
from grpo.run.disk import whole_file
from grpo.startup import assembly
from grpo.trainer import GRPOTrainer
from tests.run.kills import Moment, act_at
from tests.run.soak import sample_through_servers
from tests.support.misbehaving import Misbehaving

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
DAY_S = 86_400.0
libc = ctypes.CDLL(None, use_errno=True)


def disk_is_full(moment: Moment) -> None:
    """From the moment on no file may become larger than a few hundred kilobytes, as if the disk had no more room."""
    act_at(moment, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)))


def has_no_room(moment: Moment) -> None:
    """At the moment a small file finds no room."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    act_at(moment, refuse)


def disk_is_read_only(folder: str, moment: Moment) -> None:
    """From the moment on a folder is mounted read-only, for this process and those below it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    ids = os.getuid(), os.getgid()
    _check(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
        Path(f"/proc/self/{name}").write_text(text)

    def mount(*_: Any) -> None:
        # Files that are open for writing would hinder the first mount, and not one above it.
        _mount(folder, MS_BIND)
        _mount(folder, MS_REMOUNT | MS_BIND | MS_RDONLY)

    act_at(moment, mount)


def _mount(folder: str, flags: int) -> None:
    path = folder.encode()
    _check(libc.mount(path, path, None, flags, None))


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def server_dies(num_requests: int, num_servers: int) -> None:
    """The engine is servers, the first of which answers so many requests."""
    left = iter(range(num_requests))
    sample_through_servers(lambda _: next(left, None) is None, *[lambda _: False] * (num_servers - 1))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def in_step(step: int, action: Callable[[GRPOTrainer], object]) -> None:
    """Do something to the trainer before a step."""
    act_at(Moment("grpo.trainer", "GRPOTrainer.step", call=step), lambda trainer, _: action(trainer))


def clips_vanish(videos: list[str]) -> None:
    in_step(2, lambda _: [Path(video).unlink() for video in videos])


def clips_change(videos: list[str]) -> None:
    """Each gets the content of the next one."""

    def change(_: GRPOTrainer) -> None:
        contents = [Path(video).read_bytes() for video in videos]
        for video, content in zip(videos, contents[1:] + contents[:1], strict=True):
            with whole_file(Path(video)) as partial_file:
                partial_file.write_bytes(content)

    in_step(2, change)


def clips_hang(videos: list[str]) -> None:
    """What decodes them never comes to an end."""
    plain, hung = DecodePool._read, set[str]()

    def hanging(self: DecodePool, source: ClipSource, path: str) -> Any:
        return plain(self, replace(source, video="hang.mp4") if source.video in hung else source, path)

    assembly.ClipReader = Misbehaving  # pyright: ignore[reportAttributeAccessIssue]
    DecodePool._read = hanging
    in_step(2, lambda _: hung.update(videos))


def weights_are_nan() -> None:
    def spoil(trainer: GRPOTrainer) -> None:
        with torch.no_grad():
            next(trainer.learner.policy.parameters()).fill_(math.nan)

    in_step(3, spoil)


def gradients_are_nan(num_passes: int) -> None:
    """From the second pass on, for so many passes."""
    plain, calls = update.row_loss, itertools.count(1)

    def spoiled(*given: Any, **options: Any) -> Any:
        loss, metrics = plain(*given, **options)
        return loss * (math.nan if 1 < next(calls) <= 1 + num_passes else 1.0), metrics

    update.row_loss = spoiled


def memory_lacks(num_tokens: int, way: str) -> None:
    """Passes with a gradient of more tokens lack memory, on their way forward or back."""
    plain = update.Learner._scores

    def lacking(self: Any, row: Any) -> Any:
        scores = plain(self, row)
        if torch.is_grad_enabled() and len(row.input_ids_N) > num_tokens:
            lack = partial(_lack_memory, way)
            lack() if way == "forward" else scores.logps_T.register_hook(lambda _: lack())
        return scores

    update.Learner._scores = lacking


def _lack_memory(way: str) -> None:
    raise torch.OutOfMemoryError(f"CUDA out of memory on the way {way}. Tried to allocate 2.00 GiB.")


def disk_is_slow() -> None:
    plain = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.05)
        plain(handle)

    os.fsync = slow


def reads_are_slow() -> None:
    plain = DecodePool._read

    def slow(self: DecodePool, source: ClipSource, path: str) -> Any:
        time.sleep(0.2)
        return plain(self, source, path)

    DecodePool._read = slow


def clock_jumps(by_s: float) -> None:
    """Each look at the clock finds it somewhere else, so far away at most; a monotonic clock goes on."""
    plain, draw = time.time, random.Random(0)
    time.time = lambda: plain() + by_s * draw.random()


def reader_dies(folder: str) -> None:
    """The worker that reads the fourth clip is killed at it, as by a system without memory."""
    plain, numbers = DecodePool._read, itertools.count(1)

    def read(self: DecodePool, source: ClipSource, path: str) -> Any:
        if next(numbers) == 4:
            link = Path(folder, "once_it_is_killed.mp4")
            link.symlink_to(str(source.video))
            source = replace(source, video=str(link))
        return plain(self, source, path)

    Path(folder).mkdir()
    assembly.ClipReader = partial(Misbehaving, once=folder)  # pyright: ignore[reportAttributeAccessIssue]
    DecodePool._read = read


def supervisors_die() -> None:
    def kill(trainer: GRPOTrainer) -> None:
        pools: list[Any] = [trainer.feed.loader._pool, trainer.rewards.calls]
        for pid in (pools[0]._pool.pid, pools[1].pool.pid):
            os.kill(pid, signal.SIGKILL)

    in_step(2, kill)
