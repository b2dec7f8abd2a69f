"""Filling the disk cache ahead of a run, with real worker processes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from grpo.commands.warm import main, warm
from grpo.config.load import load_config
from grpo.data import load_samples
from grpo.media.clip import ClipSource
from grpo.media.decode_pool import DecodePool
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader, MediaCounters
from grpo.media.reading import ClipReader
from tests.support import tiny
from tests.support.clips import source_of
from tests.support.misbehaving import Misbehaving
from tests.support.runs import SMALL
from tests.support.videos import write_video


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A run on six questions about four clips of three files, and one about none."""
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", num_frames=30)
    videos = ("0.mp4", "1.mp4", "2.mp4", "2.mp4", "0.mp4", None)
    records = [
        {"id": f"q{i}", "question": "?", "answer": "!", "task": "text"}
        | ({} if video is None else {"video": video, "start_s": 0.25 if i == 3 else 0})
        for i, video in enumerate(videos)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    return [
        *SMALL,
        f"run_dir={tmp_path}/run",
        f"data.train=[{{path: {tmp_path}/train.jsonl}}]",
        "data.eval=[]",
    ]


@pytest.mark.slow
def test_a_run_after_it_decodes_nothing(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert "4 clips: 4 decoded, 0 were there, 0 can't be read" in capfd.readouterr().out
    config = load_config(arguments)
    assert config.clip_cache == tmp_path / "clip_cache"
    disk = DiskCache(config.clip_cache, max_gib=1)
    reader = ClipReader(settings=config.media, patches=tiny.family().patches, disk=disk)
    loader = ClipLoader(reader, cache_gib=1, num_workers=0, timeout_s=60)
    for sample in load_samples(config.data.train)[:5]:
        assert loader.get(source_of(sample)).num_frames >= 2
    assert loader.counters() == MediaCounters(disk_hits=4, cache_hits=1)
    loader.close()


@pytest.mark.slow
def test_what_cannot_be_read_is_named_and_the_rest_is_there(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_text("no video")
    (tmp_path / "2.mp4").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "grpo.commands", "warm", *arguments],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert f"train.jsonl:2: q1: {tmp_path}/1.mp4: cannot be read as a video" in lines[0]
    assert f"train.jsonl:3: q2: {tmp_path}/2.mp4: no such file" in lines[1]
    assert f"train.jsonl:4: q3: {tmp_path}/2.mp4: no such file" in lines[2]
    assert "4 clips: 1 decoded, 0 were there, 3 can't be read" in lines[3]


def test_a_cache_too_small_for_all_is_said(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "media.cache_disk_gib=0.00005"]) == 1
    assert "of them did not stay: media.cache_disk_gib is too small" in capfd.readouterr().out


def test_without_a_cache_there_is_nothing_to_fill(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "media.cache_disk_gib=0"]) == 1
    assert "media.cache_disk_gib is 0: there is no cache to fill" in capsys.readouterr().err


@pytest.mark.slow
def test_files_that_kill_or_hold_up_their_process_are_named_and_survived(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.mp4", num_frames=30)
    for name in ("segfault", "hang", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(Path(first).read_bytes())
    names = ("a", "segfault", "hang", "b")
    sources = [ClipSource(video=f"{tmp_path}/{name}.mp4") for name in names]
    reader = Misbehaving(settings=load_config(SMALL).media)
    with closing(DecodePool(reader, num_workers=2, timeout_s=2.0)) as pool:
        good, killed, late, last = (outcome.failure for outcome in warm(pool, sources))
    assert good is None and last is None
    assert killed is not None and "killed by signal 11 (SIGSEGV), 2 times" in killed
    assert late == f"{tmp_path}/hang.mp4: not read within media.timeout_s=2"


def test_its_time_limit_is_the_configs(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s: list[float] = []

    class Noting(DecodePool):
        def __init__(self, reader: ClipReader, *, num_workers: int, timeout_s: float) -> None:
            limits_s.append(timeout_s)
            super().__init__(reader, num_workers=num_workers, timeout_s=timeout_s)

    monkeypatch.setattr("grpo.commands.warm.DecodePool", Noting)
    assert main([*arguments, "media.timeout_s=77"]) == 0
    assert limits_s == [77]
