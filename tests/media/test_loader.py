"""The loader on real files: what is decoded, kept, counted and raised."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.feed.prompts import make_batch
from grpo.media.clip import ClipSource, MediaError
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader, MediaCounters
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from tests.support import tiny
from tests.support.misbehaving import Misbehaving, Recording
from tests.support.processes import wait_until
from tests.support.videos import write_video

SETTINGS = MediaSettings(fps=2.0, min_pixels=28 * 28, max_pixels=8 * 28 * 28)
CLIP_BYTES = 4 * 56 * 84 * 3
"""Of a clip of one second: at least 4 frames; 160x96 pixels in steps of 28, at most 8 tokens."""

MakeLoader = Callable[..., ClipLoader]
Reads = Callable[[], list[str]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ClipSource]:
    folder = tmp_path_factory.mktemp("clips")
    return [ClipSource(video=write_video(folder / f"{i}.mp4", num_frames=30)) for i in range(6)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where every decoding leaves a line."""
    return tmp_path / "log"


@pytest.fixture
def make_loader(log: Path) -> Iterator[MakeLoader]:
    made: list[ClipLoader] = []

    def make(
        num_clips: float = 100, num_workers: int = 0, disk: DiskCache | None = None, **behaviour: Any
    ) -> ClipLoader:
        reader = Recording(settings=SETTINGS, disk=disk, log=str(log), **behaviour)
        cache_gib = num_clips * CLIP_BYTES / 2**30
        made.append(ClipLoader(reader, cache_gib=cache_gib, num_workers=num_workers, timeout_s=60))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture
def reads(log: Path) -> Reads:
    """The paths that were decoded, in order."""
    return lambda: log.read_text().splitlines()


def test_the_loader_gives_the_clip_that_the_decoder_reads(
    make_loader: MakeLoader, sources: list[ClipSource]
) -> None:
    clip = make_loader().get(sources[0])
    plain = read_source(sources[0], settings=SETTINGS)
    assert clip.frames_FHWC.nbytes == CLIP_BYTES
    assert np.array_equal(clip.frames_FHWC, plain.frames_FHWC)
    assert clip.times_s == plain.times_s


def test_clips_that_are_not_wanted_any_more_are_dropped(
    sources: list[ClipSource], make_loader: MakeLoader, reads: Reads
) -> None:
    loader = make_loader(num_workers=1)
    loader.prefetch(sources[:3])
    loader.forget_all_but(sources[1:2])
    for source in sources[:3]:
        loader.get(source)
    read_twice = [sources[0], sources[2]]  # the second one's clip was still there
    assert sorted(reads()) == sorted(source.path for source in (*sources[:3], *read_twice))
    assert loader.counters() == MediaCounters(decoded=3)


def test_a_clip_is_decoded_once_while_it_stays(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads
) -> None:
    loader = make_loader()
    for _ in range(3):
        loader.prefetch(sources)
        loader.prefetch(sources)
        first = [loader.get(source) for source in sources]
        assert [loader.get(source) for source in sources] == first
    assert sorted(reads()) == sorted(source.path for source in sources)
    assert loader.counters() == MediaCounters(decoded=6, cache_hits=30)


def test_parts_of_one_file_are_different_clips(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads
) -> None:
    loader = make_loader()
    later = replace(sources[0], start_s=0.5)
    assert loader.get(sources[0]).duration_s == pytest.approx(1.0)
    assert loader.get(later).duration_s == pytest.approx(0.5)
    assert len(reads()) == 2


def test_the_clips_used_longest_ago_make_room(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads
) -> None:
    loader = make_loader(num_clips=2)
    a, b, c = sources[:3]
    for source in (a, b, a, c):  # c takes the room of b, used before a
        loader.get(source)
    assert loader.counters() == MediaCounters(decoded=3, cache_hits=1)
    loader.get(a)
    loader.get(b)
    assert loader.counters() == MediaCounters(decoded=4, cache_hits=2)
    assert reads() == [a.path, b.path, c.path, b.path]


def test_the_cache_stays_within_its_bytes(make_loader: MakeLoader, sources: list[ClipSource]) -> None:
    loader = make_loader(num_clips=5)
    for _ in range(3):
        for source in sources:  # six in turn: each is displaced just before it is asked for again
            loader.get(source)
    assert loader.counters() == MediaCounters(decoded=18)


def test_pending_clips_are_kept_however_small_the_cache(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads
) -> None:
    loader = make_loader(num_clips=1)
    loader.prefetch(sources)
    for source in sources:
        loader.get(source)
    assert len(reads()) == 6
    assert loader.counters() == MediaCounters(decoded=6)


def test_a_clip_larger_than_the_cache_displaces_nothing(
    make_loader: MakeLoader, sources: list[ClipSource], tmp_path: Path
) -> None:
    loader = make_loader(num_clips=1)
    large = ClipSource(video=write_video(tmp_path / "large.mp4", num_frames=120))
    loader.get(sources[0])
    assert loader.get(large).num_frames == 8
    loader.get(sources[0])
    assert loader.counters() == MediaCounters(decoded=2, cache_hits=1)


def test_without_a_cache_every_get_decodes(make_loader: MakeLoader, sources: list[ClipSource]) -> None:
    loader = make_loader(num_clips=0)
    loader.get(sources[0])
    loader.get(sources[0])
    assert loader.counters() == MediaCounters(decoded=2)


def test_many_threads_asking_at_once_decode_once(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=2, gate=str(tmp_path / "go"))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(loader.get, sources[0]) for _ in range(8)]
        (tmp_path / "go").touch()
        clips = {id(future.result()) for future in futures}
    assert len(clips) == len(reads()) == 1
    assert loader.counters() == MediaCounters(decoded=1, cache_hits=7)


def test_prefetching_does_not_wait(
    make_loader: MakeLoader, sources: list[ClipSource], log: Path, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=2, gate=str(tmp_path / "go"))
    loader.prefetch(sources)
    wait_until(log.exists)  # in the background, while this thread goes on
    assert loader.counters() == MediaCounters()
    (tmp_path / "go").touch()
    assert loader.get(sources[0]).num_frames == 4


@pytest.mark.slow
def test_the_same_calls_count_the_same_whatever_finishes_first(
    make_loader: MakeLoader, sources: list[ClipSource], tmp_path: Path
) -> None:
    broken = ClipSource(video=str(tmp_path / "broken.mp4"))
    rng = np.random.default_rng(0)
    order = [(*sources, broken)[index] for index in rng.integers(0, 7, 60)]

    def counted(num_workers: int, delay_seed: int) -> list[MediaCounters]:
        delays = np.random.default_rng(delay_seed).uniform(0, 0.02, len(sources))
        delays_s = {source.path: float(delay) for source, delay in zip(sources, delays, strict=True)}
        loader = make_loader(num_clips=3, num_workers=num_workers, delays_s=delays_s)
        history = []
        for step in range(0, len(order), 4):
            loader.prefetch(order[step : step + 8])
            for source in order[step : step + 4]:
                try:
                    loader.get(source)
                except MediaError:
                    assert source is broken
            history.append(loader.counters())
        return history

    first = counted(num_workers=1, delay_seed=1)
    assert first == counted(num_workers=3, delay_seed=2) == counted(num_workers=0, delay_seed=3)
    assert first[-1].failed == 1 and first[-1].cache_hits > 5 and first[-1].decoded > 6


def test_a_failure_is_raised_to_everybody_and_counted_once(
    make_loader: MakeLoader, sources: list[ClipSource], tmp_path: Path, reads: Reads
) -> None:
    loader = make_loader()
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    broken = ClipSource(video=str(path))
    loader.prefetch([broken, sources[0]])
    messages = set()
    for _ in range(3):
        with pytest.raises(MediaError) as caught:
            loader.get(broken)
        messages.add(str(caught.value))
        loader.prefetch([broken])
    loader.get(sources[0])
    assert len(messages) == 1 and str(path) in messages.pop()
    assert loader.counters() == MediaCounters(decoded=1, failed=1)
    assert reads().count(str(path)) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_that_nobody_expected_costs_its_clip_and_is_logged_in_full(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = ClipLoader(Misbehaving(settings=SETTINGS), cache_gib=1, num_workers=num_workers, timeout_s=60)
    for _ in range(2):
        with pytest.raises(MediaError, match="^bug.mp4: ZeroDivisionError: by nought$"):
            loader.get(ClipSource(video="bug.mp4"))
    assert loader.counters() == MediaCounters(failed=1)
    wait_until(lambda: any("misbehaving.py" in message for message in caplog.messages))
    assert sum("Traceback" in message for message in caplog.messages) == 1
    loader.close()


@pytest.mark.slow
def test_a_clip_whose_process_crashes_or_hangs_is_lost_by_its_samples_name(
    sources: list[ClipSource], tmp_path: Path
) -> None:
    bad = [ClipSource(video=f"{tmp_path}/{name}.mp4") for name in ("segfault", "hang")]
    loader = ClipLoader(Misbehaving(settings=SETTINGS), cache_gib=1, num_workers=2, timeout_s=2)
    sources = [bad[0], sources[0], bad[1], sources[1]]
    loader.prefetch(sources)
    asked = [tiny.sample(Path(source.path).stem, clip_source=source) for source in sources]
    batch = make_batch(asked, [0] * 4, loader, tiny.prompt, 10_000)
    loader.close()
    assert [prompt.sample for prompt in batch.prompts] == [asked[1], asked[3]]
    assert [lost.sample_id for lost in batch.lost] == ["segfault", "hang"]
    assert (
        "was killed by signal 11 (SIGSEGV)" in batch.lost[0].reason
        and "made-up:segfault" in batch.lost[0].reason
    )
    assert "not read within media.timeout_s=2" in batch.lost[1].reason


@pytest.mark.slow
def test_a_clip_that_took_too_long_is_tried_once_more_in_a_later_step(
    sources: list[ClipSource], tmp_path: Path
) -> None:
    reader = Misbehaving(settings=SETTINGS, once=str(tmp_path))
    once, twice = (ClipSource(video=f"{tmp_path}/late_{tries}.mp4") for tries in (1, 2))
    for late in (once, twice):
        shutil.copy(sources[0].path, late.path)
    with closing(ClipLoader(reader, cache_gib=1, num_workers=1, timeout_s=2)) as loader:
        for late in (once, once, twice):  # whoever asks again in the same step does not wait again
            with pytest.raises(MediaError, match="not read within"):
                loader.get(late)
        for _ in range(2):  # steps
            loader.prefetch([once, twice])
            assert loader.get(once).num_frames == 4
            with pytest.raises(MediaError, match="not read within"):
                loader.get(twice)
        assert (tmp_path / "late_2").read_text() == "xx"  # and no third time
        assert loader.counters() == MediaCounters(decoded=1, cache_hits=1, failed=2)


def test_closing_drops_what_was_not_read(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads, log: Path, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=1, gate=str(tmp_path / "never"))
    loader.prefetch(sources)
    wait_until(log.exists)
    loader.close()
    assert reads() == [sources[0].path]
    with pytest.raises(RuntimeError, match="is closed"):
        loader.get(sources[0])


def test_a_clip_is_decoded_once_for_all_loaders_of_a_disk_cache(
    make_loader: MakeLoader, sources: list[ClipSource], reads: Reads, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "cache", max_gib=1)
    first, second = (make_loader(disk=disk), make_loader(disk=DiskCache(disk.folder, max_gib=1)))
    for loader in (first, second, second):
        loader.prefetch(sources)
        clips = [loader.get(source) for source in sources]
    assert len(reads()) == 6
    assert first.counters() == MediaCounters(decoded=6)
    assert second.counters() == MediaCounters(disk_hits=6, cache_hits=6)
    plain = read_source(sources[0], settings=SETTINGS)
    assert np.array_equal(clips[0].frames_FHWC, plain.frames_FHWC) and clips[0].path == plain.path


def test_a_changed_or_damaged_clip_is_decoded_again(
    make_loader: MakeLoader, reads: Reads, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "cache", max_gib=1)
    source = ClipSource(video=write_video(tmp_path / "a.mp4", num_frames=30))
    assert make_loader(disk=disk).get(source).duration_s == pytest.approx(1)
    write_video(tmp_path / "a.mp4", num_frames=60)
    assert make_loader(disk=disk).get(source).duration_s == pytest.approx(2)
    assert len(reads()) == 2
    for file in disk.folder.glob("*/*"):
        file.write_bytes(file.read_bytes()[:100])
    loader = make_loader(disk=disk)
    assert loader.get(source).duration_s == pytest.approx(2)
    assert loader.counters() == MediaCounters(decoded=1)
    assert make_loader(disk=disk).get(source).duration_s == pytest.approx(2)
    assert len(reads()) == 3


def test_a_disk_that_takes_nothing_leaves_the_loader_as_it_is_without_one(
    make_loader: MakeLoader, sources: list[ClipSource], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    loader = make_loader(disk=DiskCache(tmp_path / "file", max_gib=1))
    for _ in range(2):
        assert [loader.get(source).num_frames for source in sources] == [4] * 6
    assert loader.counters() == MediaCounters(decoded=6, cache_hits=6)
    assert sum("going on without storing" in message for message in caplog.messages) == 1
    gone = ClipSource(video=str(tmp_path / "gone.mp4"))
    with pytest.raises(MediaError, match="no such file"):
        loader.get(gone)
