"""Clips on disk: what is found again, what makes room, and what happens when disks and processes fail."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grpo.media import disk_cache
from grpo.media.clip import Clip, ClipSource, MediaError
from grpo.media.disk_cache import DiskCache, entry_name
from grpo.media.identity import ends_digest
from grpo.media.sampling import QWEN2_5_VL, MediaSettings, PatchShape
from tests.support.clips import clip_of
from tests.support.tiny import ROOT
from tests.support.videos import read_video, write_video

SETTINGS = MediaSettings(fps=2.0, min_pixels=28 * 28, max_pixels=8 * 28 * 28)
ENTRY_BYTES = 4 * 56 * 56 * 3 + 250 + 4 + 300
"""A little more than an entry of `made_up` takes: frames, facts, checksum, header."""


def made_up(number: int) -> Clip:
    frames = np.random.default_rng(number).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    return clip_of(frames, path="a.mp4", times_s=(0.0, 0.1, 1 / 3, 0.7), sample_fps=4.1, duration_s=1.1)


def name_of(number: int) -> str:
    return f"{number:040x}"[::-1]


def cache_of(folder: Path, num_entries: float) -> DiskCache:
    return DiskCache(folder, max_gib=num_entries * ENTRY_BYTES / 2**30)


def held(cache: DiskCache, count: int) -> list[int]:
    return [number for number in range(count) if name_of(number) in cache]


def assert_equal(clip: Clip | None, other: Clip) -> None:
    assert clip is not None
    assert np.array_equal(clip.frames_FHWC, other.frames_FHWC)
    assert replace(clip.facts, path=other.path) == other.facts


@pytest.fixture
def video(tmp_path: Path) -> str:
    return write_video(tmp_path / "clip.mp4", num_frames=30)


def test_a_clip_comes_back_as_it_was(tmp_path: Path, video: str) -> None:
    clip = read_video(video, start_s=0.1, settings=SETTINGS)
    DiskCache(tmp_path / "cache", max_gib=1).store("abc", clip)
    other = DiskCache(tmp_path / "cache", max_gib=1)
    back = other.load("abc", "elsewhere.mp4")
    assert_equal(back, clip)
    assert back is not None and back.path == "elsewhere.mp4" and not back.frames_FHWC.flags.writeable
    assert other.load("abd", video) is None


def test_everything_that_shapes_a_clip_is_in_its_name(video: str) -> None:
    def name(
        start_s: float = 0.0, end_s: float | None = None, patches: PatchShape = QWEN2_5_VL, **changes
    ) -> str:
        return entry_name(
            ClipSource(video=video, start_s=start_s, end_s=end_s), replace(SETTINGS, **changes), patches
        )

    variants = [
        name(),
        name(start_s=0.5),
        name(end_s=0.5),
        name(patches=PatchShape(patch_px=16)),
        *(name(**{key: value}) for key, value in {
            "fps": 1.0, "min_frames": 6, "max_frames": 8, "min_pixels": 999, "max_pixels": 9999, "total_pixels": 99999,
        }.items()),
    ]  # fmt: skip
    assert len(set(variants)) == len(variants) == 10
    assert name() == name(start_s=0, fps=2.0)


def test_a_copy_is_the_same_file_and_a_changed_one_is_not(tmp_path: Path, video: str) -> None:
    def name(path: str | Path) -> str:
        return entry_name(ClipSource(video=str(path)), SETTINGS, QWEN2_5_VL)

    original = name(video)
    assert name(shutil.copy2(video, tmp_path / "copy.mp4")) == original
    (tmp_path / "link.mp4").symlink_to(video)
    assert name(tmp_path / "link.mp4") == original
    stat = os.stat(video)
    with open(video, "r+b") as file:  # as long and as old as before
        file.seek(40)
        file.write(b"changed")
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ends_digest.cache_clear()  # another process has not seen the file before
    assert name(video) != original
    with pytest.raises(MediaError, match="gone.mp4: no such file"):
        name(tmp_path / "gone.mp4")


def test_the_clips_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    for number in range(20):
        cache.store(name_of(number), made_up(number))
    assert held(cache, 21) == [*range(20)]
    cache.load(name_of(0), "")
    cache.store(name_of(20), made_up(20))
    # 21 would be too many: down to 18, the new one and the one just looked at among them
    assert held(cache, 21) == [0, *range(4, 21)]
    assert cache.num_bytes() <= cache.max_bytes


def test_a_clip_larger_than_the_cache_displaces_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 4)
    cache.store(name_of(0), made_up(0))
    cache.store(name_of(1), clip_of(np.zeros((40, 56, 56, 3), np.uint8)))
    assert held(cache, 2) == [0]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "header", "other file"])
def test_a_damaged_entry_is_dropped_and_can_be_stored_again(damage: str, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 4)
    cache.store(name_of(0), made_up(0))
    (file,) = tmp_path.glob("*/*.clip")
    content = bytearray(file.read_bytes())
    content[-2000 if damage == "flipped" else 4] ^= 1
    file.write_bytes(
        {"cut": content[:-9], "empty": b"", "other file": b"text" * 99}.get(damage, bytes(content))
    )
    assert cache.load(name_of(0), "") is None
    assert not file.exists()
    cache.store(name_of(0), made_up(0))
    assert_equal(cache.load(name_of(0), ""), made_up(0))


def store_many(folder: Path, seed: int) -> None:
    cache = cache_of(folder, 30)
    for number in np.random.default_rng(seed).permutation(60).tolist():
        if cache.load(name_of(number), "") is None:
            cache.store(name_of(number), made_up(number))


@pytest.mark.slow
def test_processes_that_write_at_once_keep_to_the_limit_and_harm_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=store_many, args=(tmp_path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    cache, largest = cache_of(tmp_path, 30), 0
    cache.store(name_of(0), made_up(0))
    while any(writer.is_alive() for writer in writers):
        with cache._locked_total():  # nothing comes or goes while the sum is taken
            largest = max(largest, cache.num_bytes())
        time.sleep(0.005)  # who waits for the lock looks at it now and then
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert 0 < largest <= cache.max_bytes
    for number in held(cache, 60):
        assert_equal(cache.load(name_of(number), ""), made_up(number))
    assert len(held(cache, 60)) >= 20
    assert int((tmp_path / "bytes").read_text()) == cache.num_bytes()


WRITER = """
import sys
from pathlib import Path
from tests.media.test_disk_cache import cache_of, made_up, name_of
cache = cache_of(Path(sys.argv[1]), 8)
for number in range(10**9):
    cache.store(name_of(number), made_up(number))
    if number == 0:
        print("ready", flush=True)
"""


@pytest.mark.slow
def test_writers_killed_at_any_moment_leave_whole_entries_and_no_lock(tmp_path: Path) -> None:
    for delay_s in (0.001, 0.0047, 0.0123, 0.0351):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(delay_s)
            writer.send_signal(signal.SIGKILL)
    cache, whole = cache_of(tmp_path, 8), [*tmp_path.glob("*/[!.]*.clip")]
    assert whole
    for file in whole:
        number = int(file.stem[::-1], 16)
        assert_equal(cache.load(file.stem, ""), made_up(number))
    cache.store(name_of(10**9), made_up(0))
    assert name_of(10**9) in cache and cache.num_bytes() <= cache.max_bytes


def store_killed_before_renaming(folder: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    cache_of(folder, 8).store(name_of(1), made_up(1))


def test_a_writer_killed_before_it_renames_costs_nothing_but_room_until_the_next_listing(
    tmp_path: Path,
) -> None:
    cache = cache_of(tmp_path, 8)
    cache.store(name_of(0), made_up(0))
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=store_killed_before_renaming, args=(tmp_path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    (unfinished,) = tmp_path.glob("*/.*.clip")
    assert held(cache, 2) == [0] and unfinished.stat().st_size > ENTRY_BYTES * 0.9
    assert_equal(cache.load(name_of(0), ""), made_up(0))
    counted_bytes = int((tmp_path / "bytes").read_text())
    assert counted_bytes > 1.9 * cache.num_bytes()  # it was counted before it was there
    os.utime(unfinished, (time.time() - 7200, time.time() - 7200))
    for number in range(1, 9):  # the last one would be too many as they are counted: what is there is listed
        cache.store(name_of(number), made_up(number))
    assert not unfinished.exists()
    assert int((tmp_path / "bytes").read_text()) == cache.num_bytes() <= cache.max_bytes
    assert len(held(cache, 9)) >= 7


def test_what_killed_writers_left_unfinished_is_removed_in_time(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 4)
    (tmp_path / "ab").mkdir()
    old, recent = tmp_path / "ab" / ".old.clip", tmp_path / "ab" / ".recent.clip"
    for file in (old, recent):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.store(name_of(0), made_up(0))  # the first entry of a folder lists what is there
    assert not old.exists() and recent.exists()
    assert 0 < cache.num_bytes() < ENTRY_BYTES


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writes behind that fail, as on a full disk: in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_said_once_and_what_is_there_stays_usable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path, 20)
    cache.store(name_of(0), made_up(0))
    with caplog.at_level(logging.WARNING), files_limited_to(ENTRY_BYTES // 2):
        for number in range(1, 5):
            cache.store(name_of(number), made_up(number))
    (warning,) = caplog.messages
    assert str(tmp_path) in warning and "File too large; going on without storing clips" in warning
    assert held(cache, 5) == [0] and not [*tmp_path.glob("*/.*")]
    assert_equal(cache.load(name_of(0), ""), made_up(0))


@pytest.mark.parametrize("obstacle", ["a file in the way", "an almost full disk"])
def test_a_folder_that_cannot_be_used_is_said_once(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "file"
    if obstacle == "a file in the way":
        folder.write_text("")
    else:
        monkeypatch.setattr(disk_cache, "MIN_FREE_GIB", 1e9)
    cache = cache_of(folder, 4)
    with caplog.at_level(logging.WARNING):
        assert cache.load(name_of(0), "") is None
        for number in range(3):
            cache.store(name_of(number), made_up(number))
        assert cache.load(name_of(0), "") is None
    (warning,) = caplog.messages
    assert "going on without storing clips" in warning and held(cache, 3) == []


def test_who_waits_in_vain_for_the_lock_stores_nothing_and_after_three_times_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path, 4)
    cache.lock_s = 0.05
    with caplog.at_level(logging.WARNING), cache_of(tmp_path, 4)._locked_total():
        cache.store(name_of(0), made_up(0))
    (warning,) = caplog.messages
    assert "another process holds the lock for over 0.05 s" in warning
    cache.store(name_of(1), made_up(1))
    assert held(cache, 2) == [1] and not [*tmp_path.glob("*/.*")]
    with cache_of(tmp_path, 4)._locked_total():
        for _ in range(3):
            assert cache.is_writing
            cache.store(name_of(2), made_up(2))
    assert not cache.is_writing and "going on without storing clips" in caplog.messages[-1]
