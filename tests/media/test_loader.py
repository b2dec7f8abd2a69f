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
from grpo.groups import Sample
from grpo.media.decode import MediaError, read_clip
from grpo.media.disk_cache import DiskCache
from grpo.media.loader import ClipLoader, MediaCounters
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
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_sample(write_video(folder / f"{i}.mp4", num_frames=30)) for i in range(6)]


def make_sample(video: str, start_s: float = 0.0) -> Sample:
    return Sample(
        id=f"{video}@{start_s}",
        question="?",
        answer="!",
        task="text",
        source="here:1",
        video=video,
        start_s=start_s,
    )


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
    make_loader: MakeLoader, samples: list[Sample]
) -> None:
    clip = make_loader().get(samples[0])
    assert samples[0].video is not None
    plain = read_clip(samples[0].video, settings=SETTINGS)
    assert clip.frames_FHWC.nbytes == CLIP_BYTES
    assert np.array_equal(clip.frames_FHWC, plain.frames_FHWC)
    assert clip.times_s == plain.times_s


def test_clips_that_are_not_wanted_any_more_are_dropped(
    samples: list[Sample], make_loader: MakeLoader, reads: Reads
) -> None:
    loader = make_loader(num_workers=1)
    loader.prefetch(samples[:3])
    loader.forget_all_but(samples[1:2])
    for sample in samples[:3]:
        loader.get(sample)
    read_twice = [samples[0], samples[2]]  # the second one's clip was still there
    assert sorted(reads()) == sorted(str(sample.video) for sample in (*samples[:3], *read_twice))
    assert loader.counters() == MediaCounters(decoded=3)


def test_a_clip_is_decoded_once_while_it_stays(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads
) -> None:
    loader = make_loader()
    for _ in range(3):
        loader.prefetch(samples)
        loader.prefetch(samples)
        first = [loader.get(sample) for sample in samples]
        assert [loader.get(sample) for sample in samples] == first
    assert sorted(reads()) == sorted(str(sample.video) for sample in samples)
    assert loader.counters() == MediaCounters(decoded=6, cache_hits=30)


def test_parts_of_one_file_are_different_clips(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads
) -> None:
    loader = make_loader()
    later = make_sample(str(samples[0].video), start_s=0.5)
    assert loader.get(samples[0]).duration_s == pytest.approx(1.0)
    assert loader.get(later).duration_s == pytest.approx(0.5)
    assert len(reads()) == 2


def test_the_clips_used_longest_ago_make_room(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads
) -> None:
    loader = make_loader(num_clips=2)
    a, b, c = samples[:3]
    for sample in (a, b, a, c):  # c takes the room of b, used before a
        loader.get(sample)
    assert loader.counters() == MediaCounters(decoded=3, cache_hits=1)
    loader.get(a)
    loader.get(b)
    assert loader.counters() == MediaCounters(decoded=4, cache_hits=2)
    assert reads() == [a.video, b.video, c.video, b.video]


def test_the_cache_stays_within_its_bytes(make_loader: MakeLoader, samples: list[Sample]) -> None:
    loader = make_loader(num_clips=5)
    for _ in range(3):
        for sample in samples:  # six in turn: each is displaced just before it is asked for again
            loader.get(sample)
    assert loader.counters() == MediaCounters(decoded=18)


def test_pending_clips_are_kept_however_small_the_cache(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads
) -> None:
    loader = make_loader(num_clips=1)
    loader.prefetch(samples)
    for sample in samples:
        loader.get(sample)
    assert len(reads()) == 6
    assert loader.counters() == MediaCounters(decoded=6)


def test_a_clip_larger_than_the_cache_displaces_nothing(
    make_loader: MakeLoader, samples: list[Sample], tmp_path: Path
) -> None:
    loader = make_loader(num_clips=1)
    large = make_sample(write_video(tmp_path / "large.mp4", num_frames=120))
    loader.get(samples[0])
    assert loader.get(large).num_frames == 8
    loader.get(samples[0])
    assert loader.counters() == MediaCounters(decoded=2, cache_hits=1)


def test_without_a_cache_every_get_decodes(make_loader: MakeLoader, samples: list[Sample]) -> None:
    loader = make_loader(num_clips=0)
    loader.get(samples[0])
    loader.get(samples[0])
    assert loader.counters() == MediaCounters(decoded=2)


def test_many_threads_asking_at_once_decode_once(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=2, gate=str(tmp_path / "go"))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(loader.get, samples[0]) for _ in range(8)]
        (tmp_path / "go").touch()
        clips = {id(future.result()) for future in futures}
    assert len(clips) == len(reads()) == 1
    assert loader.counters() == MediaCounters(decoded=1, cache_hits=7)


def test_prefetching_does_not_wait(
    make_loader: MakeLoader, samples: list[Sample], log: Path, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=2, gate=str(tmp_path / "go"))
    loader.prefetch(samples)
    wait_until(log.exists)  # in the background, while this thread goes on
    assert loader.counters() == MediaCounters()
    (tmp_path / "go").touch()
    assert loader.get(samples[0]).num_frames == 4


@pytest.mark.slow
def test_the_same_calls_count_the_same_whatever_finishes_first(
    make_loader: MakeLoader, samples: list[Sample], tmp_path: Path
) -> None:
    broken = make_sample(str(tmp_path / "broken.mp4"))
    rng = np.random.default_rng(0)
    order = [(*samples, broken)[index] for index in rng.integers(0, 7, 60)]

    def counted(num_workers: int, delay_seed: int) -> list[MediaCounters]:
        delays = np.random.default_rng(delay_seed).uniform(0, 0.02, len(samples))
        delays_s = {str(sample.video): float(delay) for sample, delay in zip(samples, delays, strict=True)}
        loader = make_loader(num_clips=3, num_workers=num_workers, delays_s=delays_s)
        history = []
        for step in range(0, len(order), 4):
            loader.prefetch(order[step : step + 8])
            for sample in order[step : step + 4]:
                try:
                    loader.get(sample)
                except MediaError:
                    assert sample is broken
            history.append(loader.counters())
        return history

    first = counted(num_workers=1, delay_seed=1)
    assert first == counted(num_workers=3, delay_seed=2) == counted(num_workers=0, delay_seed=3)
    assert first[-1].failed == 1 and first[-1].cache_hits > 5 and first[-1].decoded > 6


def test_a_failure_is_raised_to_everybody_and_counted_once(
    make_loader: MakeLoader, samples: list[Sample], tmp_path: Path, reads: Reads
) -> None:
    loader = make_loader()
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    broken = make_sample(str(path))
    loader.prefetch([broken, samples[0]])
    messages = set()
    for _ in range(3):
        with pytest.raises(MediaError) as caught:
            loader.get(broken)
        messages.add(str(caught.value))
        loader.prefetch([broken])
    loader.get(samples[0])
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
            loader.get(make_sample("bug.mp4"))
    assert loader.counters() == MediaCounters(failed=1)
    wait_until(lambda: any("misbehaving.py" in message for message in caplog.messages))
    assert sum("Traceback" in message for message in caplog.messages) == 1
    loader.close()


@pytest.mark.slow
def test_a_clip_whose_process_crashes_or_hangs_is_lost_by_its_samples_name(
    samples: list[Sample], tmp_path: Path
) -> None:
    bad = [replace(make_sample(f"{tmp_path}/{name}.mp4"), id=name) for name in ("segfault", "hang")]
    loader = ClipLoader(Misbehaving(settings=SETTINGS), cache_gib=1, num_workers=2, timeout_s=2)
    asked = [bad[0], samples[0], bad[1], samples[1]]
    loader.prefetch(asked)
    batch = make_batch(asked, [0] * 4, loader, tiny.prompt, 10_000)
    loader.close()
    assert [prompt.sample for prompt in batch.prompts] == samples[:2]
    assert [lost.sample_id for lost in batch.lost] == ["segfault", "hang"]
    assert "was killed by signal 11 (SIGSEGV)" in batch.lost[0].reason and "here:1" in batch.lost[0].reason
    assert "not read within media.timeout_s=2" in batch.lost[1].reason


@pytest.mark.slow
def test_a_clip_that_took_too_long_is_tried_once_more_in_a_later_step(
    samples: list[Sample], tmp_path: Path
) -> None:
    reader = Misbehaving(settings=SETTINGS, once=str(tmp_path))
    once, twice = (make_sample(f"{tmp_path}/late_{tries}.mp4") for tries in (1, 2))
    for late in (once, twice):
        shutil.copy(str(samples[0].video), str(late.video))
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
    make_loader: MakeLoader, samples: list[Sample], reads: Reads, log: Path, tmp_path: Path
) -> None:
    loader = make_loader(num_workers=1, gate=str(tmp_path / "never"))
    loader.prefetch(samples)
    wait_until(log.exists)
    loader.close()
    assert reads() == [samples[0].video]
    with pytest.raises(RuntimeError, match="is closed"):
        loader.get(samples[0])


def test_a_clip_is_decoded_once_for_all_loaders_of_a_disk_cache(
    make_loader: MakeLoader, samples: list[Sample], reads: Reads, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "cache", max_gib=1)
    first, second = (make_loader(disk=disk), make_loader(disk=DiskCache(disk.folder, max_gib=1)))
    for loader in (first, second, second):
        loader.prefetch(samples)
        clips = [loader.get(sample) for sample in samples]
    assert len(reads()) == 6
    assert first.counters() == MediaCounters(decoded=6)
    assert second.counters() == MediaCounters(disk_hits=6, cache_hits=6)
    assert samples[0].video is not None
    plain = read_clip(samples[0].video, settings=SETTINGS)
    assert np.array_equal(clips[0].frames_FHWC, plain.frames_FHWC) and clips[0].path == plain.path


def test_a_changed_or_damaged_clip_is_decoded_again(
    make_loader: MakeLoader, reads: Reads, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "cache", max_gib=1)
    sample = make_sample(write_video(tmp_path / "a.mp4", num_frames=30))
    assert make_loader(disk=disk).get(sample).duration_s == pytest.approx(1)
    write_video(tmp_path / "a.mp4", num_frames=60)
    assert make_loader(disk=disk).get(sample).duration_s == pytest.approx(2)
    assert len(reads()) == 2
    for file in disk.folder.glob("*/*"):
        file.write_bytes(file.read_bytes()[:100])
    loader = make_loader(disk=disk)
    assert loader.get(sample).duration_s == pytest.approx(2)
    assert loader.counters() == MediaCounters(decoded=1)
    assert make_loader(disk=disk).get(sample).duration_s == pytest.approx(2)
    assert len(reads()) == 3


def test_a_disk_that_takes_nothing_leaves_the_loader_as_it_is_without_one(
    make_loader: MakeLoader, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    loader = make_loader(disk=DiskCache(tmp_path / "file", max_gib=1))
    for _ in range(2):
        assert [loader.get(sample).num_frames for sample in samples] == [4] * 6
    assert loader.counters() == MediaCounters(decoded=6, cache_hits=6)
    assert sum("going on without storing" in message for message in caplog.messages) == 1
    gone = make_sample(str(tmp_path / "gone.mp4"))
    with pytest.raises(MediaError, match="no such file"):
        loader.get(gone)


def test_counters_of_a_step_are_a_difference() -> None:
    before, after = (
        MediaCounters(decoded=3, failed=1),
        MediaCounters(decoded=5, disk_hits=4, cache_hits=2, failed=1),
    )
    assert after - before == MediaCounters(decoded=2, disk_hits=4, cache_hits=2)
