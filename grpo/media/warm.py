"""Decode a run's clips into its disk cache ahead of it: `python -m grpo.media.warm CONFIG.yaml ... key=value ...`.

Takes what the run will be started with, needs no GPU, and uses all cores. Clips that are there already are
only checked, so that it can be stopped and started again. Exit status 1, with their names, if clips can't be read
or don't all fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context

import torch
from tqdm import tqdm

from grpo.config import Config, load_config
from grpo.data import load_samples
from grpo.groups import Sample
from grpo.media.decode import MediaError
from grpo.media.disk_cache import DiskCache
from grpo.media.reading import ClipReader
from grpo.media.sampling import MediaSettings, PatchShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a clip."""

    name: str = ""
    """Of its entry in the cache."""
    is_new: bool = False
    """It had to be decoded."""
    failure: str | None = None
    """Why it can't be read."""


def main(argv: Sequence[str]) -> int:
    from grpo.families import load_family  # late: the worker processes read this file too, and need no models

    try:
        config = load_config(argv)
        if not config.media.cache_disk_gib:
            raise ValueError("config: media.cache_disk_gib is 0: there is no cache to fill")
        patches = load_family(config.model.path).patches
        clips = distinct_clips(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}".splitlines()[0])
    warm = partial(
        warm_clip,
        folder=str(config.clip_cache),
        max_gib=config.media.cache_disk_gib,
        settings=config.media,
        patches=patches,
    )
    outcomes: list[Outcome] = []
    results = run_in_processes(warm, clips, num_processes=len(os.sched_getaffinity(0)))
    for sample, outcome in tqdm(results, total=len(clips), unit="clip", disable=None):
        outcomes.append(outcome)
        if outcome.failure is not None:
            tqdm.write(f"{sample.source}: {sample.id}: {outcome.failure}")
    return report(outcomes, DiskCache(config.clip_cache, max_gib=config.media.cache_disk_gib))


def distinct_clips(config: Config) -> list[Sample]:
    """A sample for each clip of the training and held-out data; these are looked at for the first time here."""
    samples = load_samples(config.data.train)
    for dataset in config.data.eval:
        samples += load_samples([dataset])
    by_clip = {sample.clip_source: sample for sample in reversed(samples) if sample.clip_source is not None}
    return [*reversed(by_clip.values())]


def warm_clip(
    sample: Sample, *, folder: str, max_gib: float, settings: MediaSettings, patches: PatchShape
) -> Outcome:
    """Have the sample's clip in the cache. In a worker process, whose other threads would only compete."""
    torch.set_num_threads(1)
    reader = ClipReader(settings=settings, patches=patches, disk=_open_cache(folder, max_gib))
    assert sample.clip_source is not None
    try:
        read = reader.read(sample.clip_source)
    except MediaError as error:
        return Outcome(failure=str(error))
    reader.keep(read)
    return Outcome(name=read.name or "", is_new=read.is_decoded)


def run_in_processes(
    warm: Callable[[Sample], Outcome], clips: Sequence[Sample], *, num_processes: int
) -> Iterator[tuple[Sample, Outcome]]:
    """The clips with what became of them, in order; one whose file makes a decoder crash is found and survived."""
    done = 0
    while done < len(clips):
        try:
            with _processes(num_processes) as pool:
                for outcome in pool.map(warm, clips[done:]):
                    yield clips[done], outcome
                    done += 1
        except BrokenProcessPool:
            # It was one of those under way: they are tried one by one.
            for sample in clips[done : done + 2 * num_processes]:
                yield sample, _run_alone(warm, sample)
                done += 1


def report(outcomes: Sequence[Outcome], cache: DiskCache) -> int:
    """Print the sums; the exit status."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    decoded = sum(outcome.is_new for outcome in outcomes)
    missing = sum(outcome.failure is None and outcome.name not in cache for outcome in outcomes)
    gib = 2**30
    print(
        f"{len(outcomes)} clips: {decoded} decoded, {len(outcomes) - decoded - failed} were there, "
        f"{failed} can't be read; {cache.folder} holds {cache.num_bytes() / gib:.3g} of {cache.max_bytes / gib:.3g} GiB"
    )
    if missing:
        print(
            f"{missing} of them did not stay: media.cache_disk_gib is too small for all, or the disk is full"
        )
    return 1 if failed or missing else 0


def _run_alone(warm: Callable[[Sample], Outcome], sample: Sample) -> Outcome:
    try:
        with _processes(1) as pool:
            return pool.submit(warm, sample).result()
    except BrokenProcessPool:
        return Outcome(failure=f"{sample.video}: the process that decoded it died")


def _processes(count: int) -> ProcessPoolExecutor:
    # Not forked: this process has threads by now, of torch and of the progress bar.
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


@lru_cache(maxsize=1)
def _open_cache(folder: str, max_gib: float) -> DiskCache:
    """One for all clips of a worker: a full disk is said once."""
    return DiskCache(folder, max_gib=max_gib)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
