"""Processes that decode: what they hand over, and what is survived."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import pytest

from grpo.media.clip import ClipSource, MediaError
from grpo.media.decode_pool import DecodePool
from grpo.media.disk_cache import DiskCache
from grpo.media.reading import ClipReader, Read, read_source
from grpo.media.sampling import MediaSettings
from tests.support.misbehaving import Misbehaving, Recording
from tests.support.processes import is_running, wait_until
from tests.support.tiny import ROOT
from tests.support.videos import write_video

SETTINGS = MediaSettings(fps=2.0, min_pixels=28 * 28, max_pixels=8 * 28 * 28)
MakePool = Callable[..., DecodePool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos whose names say what happens to the process that reads them."""
    folder = tmp_path_factory.mktemp("clips")
    names = ("a", "b", "c", "once_1", "segfault", "exit", "stop", "hang")
    first = write_video(folder / "a.mp4", num_frames=30)
    for name in names[1:]:
        (folder / f"{name}.mp4").write_bytes(Path(first).read_bytes())
    return folder


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    made: list[DecodePool] = []

    def make(reader: ClipReader, *, num_workers: int = 2, timeout_s: float = 60.0) -> DecodePool:
        made.append(DecodePool(reader, num_workers=num_workers, timeout_s=timeout_s))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def source(folder: Path, name: str) -> ClipSource:
    return ClipSource(video=f"{folder}/{name}.mp4")


def entries(cache: Path) -> list[Path]:
    """Without those that are still being written, whose names start with a dot."""
    return [*cache.glob("*/[!.]*.clip")]


def refusal(future: Future[Read]) -> str:
    with pytest.raises(MediaError) as caught:
        future.result(timeout=60)
    return str(caught.value)


def test_clips_come_as_they_were_read(make_pool: MakePool, folder: Path, tmp_path: Path) -> None:
    pool = make_pool(ClipReader(settings=SETTINGS, disk=DiskCache(tmp_path / "cache", max_gib=1)))
    for is_decoded in (True, False):
        futures = [pool.submit(source(folder, name)) for name in "abc"]
        for name, future in zip("abc", futures, strict=True):
            read, plain = future.result(timeout=60), read_source(source(folder, name), settings=SETTINGS)
            assert np.array_equal(read.clip.frames_FHWC, plain.frames_FHWC)
            assert not read.clip.frames_FHWC.flags.writeable
            assert (read.clip.times_s, read.clip.path) == (plain.times_s, plain.path)
            assert (read.clip.sample_fps, read.clip.duration_s) == (plain.sample_fps, plain.duration_s)
            assert read.is_decoded is is_decoded
        wait_until(lambda: len(entries(tmp_path / "cache")) == 3)  # stored after they were sent
    assert len(pool.pids) <= 2


def test_clips_that_are_kept_hold_no_file_open(make_pool: MakePool, folder: Path) -> None:
    pool = make_pool(ClipReader(settings=SETTINGS))
    kept = [pool.submit(source(folder, "a")).result(timeout=60)]
    before = len(os.listdir("/proc/self/fd"))
    kept += [pool.submit(source(folder, "a")).result(timeout=60) for _ in range(20)]
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_clip_that_kills_its_process_is_refused_and_others_go_on(
    make_pool: MakePool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(Misbehaving(settings=SETTINGS))
    names = ("a", "segfault", "b", "exit", "c")
    a, segfault, b, left, c = (pool.submit(source(folder, name)) for name in names)
    assert "segfault.mp4: the process that decoded it was killed by signal 11 (SIGSEGV), 2 times" in refusal(
        segfault
    )
    assert "exit.mp4: the process that decoded it exited with status 3, 2 times" in refusal(left)
    assert all(future.result(timeout=60).clip.num_frames == 4 for future in (a, b, c))
    assert sum("trying again" in message for message in caplog.messages) == 2
    assert pool.submit(source(folder, "a")).result(timeout=60).is_decoded


def test_a_clip_whose_process_was_killed_by_others_is_read_by_another(
    make_pool: MakePool, folder: Path, tmp_path: Path
) -> None:
    pool = make_pool(Misbehaving(settings=SETTINGS, once=str(tmp_path)), num_workers=1)
    assert pool.submit(source(folder, "once_1")).result(timeout=60).clip.num_frames == 4
    assert (tmp_path / "once_1").exists()
    os.kill(pool.pids[0], signal.SIGKILL)  # one that has nothing to do
    assert pool.submit(source(folder, "a")).result(timeout=60).clip.num_frames == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hang", "stop"])
def test_a_clip_that_takes_too_long_is_refused_and_others_go_on(
    name: str, make_pool: MakePool, folder: Path
) -> None:
    pool = make_pool(Misbehaving(settings=SETTINGS), num_workers=1, timeout_s=1.0)
    first = pool.submit(source(folder, "a"))
    late, next_one = pool.submit(source(folder, name)), pool.submit(source(folder, "b"))
    first.result(timeout=60)
    stuck = pool.pids[0]
    assert refusal(late) == f"{folder}/{name}.mp4: not read within media.timeout_s=1"
    assert next_one.result(timeout=60).clip.num_frames == 4
    assert pool.pids != [stuck]
    wait_until(lambda: not is_running(stuck))


@pytest.mark.slow
def test_the_process_that_forks_is_replaced(make_pool: MakePool, folder: Path) -> None:
    pool = make_pool(ClipReader(settings=SETTINGS), num_workers=1)
    pool.submit(source(folder, "a")).result(timeout=60)
    worker = psutil.Process(pool.pids[0])
    parent = worker.parent()
    assert parent is not None and parent.pid != os.getpid()
    parent.kill()
    wait_until(lambda: not is_running(worker.pid))  # with the one that forked it
    assert pool.submit(source(folder, "b")).result(timeout=60).clip.num_frames == 4


def test_processes_that_cannot_start_are_an_error(
    make_pool: MakePool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.workers.pool.CODE", "import sys; sys.exit(1)")
    pool = make_pool(ClipReader(settings=SETTINGS))
    with pytest.raises(RuntimeError, match="the processes that decode clips can't be started"):
        pool.submit(source(folder, "a")).result(timeout=60)
    with pytest.raises(RuntimeError, match="can't be started"):
        pool.submit(source(folder, "b")).result(timeout=60)


@pytest.mark.slow
def test_a_full_disk_is_said_once_by_all_processes(
    make_pool: MakePool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    pool = make_pool(ClipReader(settings=SETTINGS, disk=DiskCache(tmp_path / "file", max_gib=1)))
    for _ in range(3):
        for future in [pool.submit(source(folder, name)) for name in "abc"]:
            assert future.result(timeout=60).is_decoded
    assert sum("going on without storing" in message for message in caplog.messages) == 1


@pytest.mark.slow
def test_storing_that_hangs_costs_no_clip(
    make_pool: MakePool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = StoringHangs(settings=SETTINGS, disk=DiskCache(tmp_path, max_gib=1))
    pool = make_pool(reader, num_workers=1, timeout_s=1.0)
    for name in "ab":
        assert pool.submit(source(folder, name)).result(timeout=60).clip.num_frames == 4
    assert sum("storing a clip takes too long" in message for message in caplog.messages) == 1


class StoringHangs(ClipReader):
    def keep(self, read: Read) -> None:
        time.sleep(1000)


def test_clips_that_nobody_asks_for_end_with_the_pool(folder: Path, tmp_path: Path) -> None:
    reader = Recording(settings=SETTINGS, log=str(tmp_path / "log"), gate=str(tmp_path / "never"))
    pool = DecodePool(reader, num_workers=2, timeout_s=60)
    futures = [pool.submit(source(folder, name)) for name in "abc"]
    wait_until(lambda: len(pool.pids) == 2)
    pids = pool.pids
    pool.close()
    pool.close()
    wait_until(lambda: not any(map(is_running, pids)))
    # And that of one that is asked for too late.
    for future in [*futures, pool.submit(source(folder, "a"))]:
        with pytest.raises(RuntimeError, match="is closed"):
            future.result(timeout=1)


TRAINER = """
import sys, time
from grpo.media.clip import ClipSource
from grpo.media.decode_pool import DecodePool
from grpo.media.sampling import MediaSettings
from tests.support.misbehaving import Misbehaving
pool = DecodePool(Misbehaving(settings=MediaSettings()), num_workers=2, timeout_s=600)
pool.submit(ClipSource(video="hang.mp4"))
pool.submit(ClipSource(video="stop.mp4"))
while len(pool.pids) < 2:
    time.sleep(0.01)
print(*pool.pids, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_processes_die_with_the_trainer_however_that_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        family = [*pids, psutil.Process(pids[0]).ppid()]
        assert len(pids) == 2 and all(map(is_running, family))
        trainer.kill()
    wait_until(lambda: not any(map(is_running, family)))


def test_what_processes_log_is_logged_here(
    make_pool: MakePool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(ClipReader(settings=SETTINGS, disk=DiskCache(tmp_path, max_gib=1)))
    pool.submit(source(folder, "a")).result(timeout=60)
    wait_until(lambda: entries(tmp_path))
    [entry] = entries(tmp_path)
    entry.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert pool.submit(source(folder, "a")).result(timeout=60).is_decoded
        wait_until(lambda: any(f"{entry}: damaged" in message for message in caplog.messages))


def test_a_clip_that_cannot_be_taken_over_is_refused(
    make_pool: MakePool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(ClipReader(settings=SETTINGS), num_workers=1)
    with monkeypatch.context() as patched:
        patched.setattr("grpo.media.decode_pool.Clip", no_memory)
        assert refusal(pool.submit(source(folder, "a"))) == (
            f"{folder}/a.mp4: its frames could not be taken over: MemoryError: 9 GiB"
        )
    assert pool.submit(source(folder, "a")).result(timeout=60).clip.num_frames == 4


def no_memory(*_: object) -> Read:
    raise MemoryError("9 GiB")
