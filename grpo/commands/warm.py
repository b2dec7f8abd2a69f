"""Decode a run's clips into its disk cache ahead of it: `egogrpo warm CONFIG.yaml ... key=value ...`.

Takes what the run will be started with, needs no GPU, and uses all cores. Clips that are there already are
only checked, so that it can be stopped and started again. Exit status 1, with their names, if clips can't be read
or don't all fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from tqdm import tqdm

from grpo.commands.arguments import Parser
from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.data import load_samples
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError
from grpo.media.decode_pool import DecodePool
from grpo.media.disk_cache import DiskCache
from grpo.media.reading import Read, StoringReader
from grpo.policy.model_folder import find_model_folder
from grpo.run.progress import under_way


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a clip."""

    name: str = ""
    """The name of the clip's entry in the cache."""
    is_new: bool = False
    """Whether the clip had to be decoded."""
    failure: str | None = None
    """The reason why the clip can't be read, if it can't."""


def main(argv: Sequence[str]) -> int:
    """Fill the cache of the run that the command line names; the exit status."""
    parser = Parser(prog="egogrpo warm", description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG | key=value")
    try:
        config = load_config(parser.parse_args(argv).configs)
        if not config.media.cache_disk_gib:
            raise ValueError("config: media.cache_disk_gib is 0: there is no cache to fill")
        find_model_folder(config.model.path)
        # Late, since torch and transformers take seconds: a wrong key is reported before them.
        with under_way("importing torch and transformers"):
            from grpo.policy.families import load_family

        patches = load_family(config.model.path).patches
        clips = distinct_clips(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    # A clip that is not stored was decoded for nothing here, so it waits for the others.
    disk = DiskCache(
        config.clip_cache, max_gib=config.media.cache_disk_gib, lock_s=config.media.timeout_s / 2
    )
    reader = StoringReader(settings=config.media, patches=patches, disk=disk)
    num_workers = len(os.sched_getaffinity(0))
    outcomes: list[Outcome] = []
    with closing(DecodePool(reader, num_workers=num_workers, timeout_s=config.media.timeout_s)) as pool:
        outcomes_of = zip(clips.values(), warm(pool, clips), strict=True)
        for sample, outcome in tqdm(outcomes_of, total=len(clips), unit="clip", disable=None):
            outcomes.append(outcome)
            if outcome.failure is not None:
                tqdm.write(f"{sample.source}: {sample.id}: {outcome.failure}")
    return report(outcomes, disk)


def distinct_clips(config: Config) -> dict[ClipSource, Sample]:
    """The clips of the training and held-out data, each with the first sample about it."""
    sets = [load_samples(config.data.train), *(load_samples([each]) for each in config.data.eval)]
    clips: dict[ClipSource, Sample] = {}
    for sample in chain.from_iterable(sets):
        for source in sample.sources:
            clips.setdefault(source, sample)
    return clips


def warm(pool: DecodePool, clips: Iterable[ClipSource]) -> Iterator[Outcome]:
    """What became of each clip, in order. pool: of a `StoringReader`, whose answers take no memory."""
    futures = [pool.submit(clip) for clip in clips]
    return map(_outcome, futures)


def report(outcomes: Sequence[Outcome], cache: DiskCache) -> int:
    """Print how many clips were decoded, were there and can't be read; the exit status."""
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


def _outcome(future: Future[Read]) -> Outcome:
    try:
        read = future.result()
    except MediaError as error:
        return Outcome(failure=str(error))
    return Outcome(name=read.name or "", is_new=read.is_decoded)
