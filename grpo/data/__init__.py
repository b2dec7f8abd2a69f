"""Readers: one small file per dataset format, each translating records into `Sample`s."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from grpo.data.check import check_media
from grpo.data.ego4d_nlq import read_ego4d_nlq
from grpo.data.egocross import read_egocross, read_egocross_open
from grpo.data.egoplan import read_egoplan
from grpo.data.egoschema import read_egoschema
from grpo.data.egotempo import read_egotempo
from grpo.data.errors import DataError, used_before
from grpo.data.jsonl import read_huggingface, read_jsonl
from grpo.data.llava import read_llava
from grpo.data.openeqa import read_openeqa
from grpo.data.overlap import check_overlap, namesakes
from grpo.data.qaego4d import read_qaego4d
from grpo.data.sharegpt import read_sharegpt
from grpo.data.video_r1 import read_video_r1
from grpo.groups import Sample

__all__ = [
    "READERS", "check_media", "check_overlap", "load_samples", "load_sets", "namesakes", "read_records", "timed",
]  # fmt: skip

Reader = Callable[[str, str | None], list[Sample]]


def read_synthetic(path: str, media_root: str | None) -> list[Sample]:
    """The demo's clips (512 to train on, 200 held out), rendered into the file's folder on first use."""
    from grpo.demo.clips import write_dataset  # late: only the demo renders

    write_dataset(Path(path).parent, num_train=512, num_heldout=200, seed=0)
    return read_jsonl(path, media_root)


READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "synthetic": read_synthetic,
    "ego4d_nlq": read_ego4d_nlq,
    "egocross": read_egocross,
    "egocross_open": read_egocross_open,
    "egoplan": read_egoplan,
    "egoschema": read_egoschema,
    "egotempo": read_egotempo,
    "huggingface": read_huggingface,
    "llava": read_llava,
    "openeqa": read_openeqa,
    "qaego4d": read_qaego4d,
    "sharegpt": read_sharegpt,
    "video_r1": read_video_r1,
}


class Dataset(Protocol):
    """A data set's entry in the config, as far as readers need it."""

    @property
    def reader(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def media_root(self) -> str | None: ...
    @property
    def frame_fps(self) -> float | None: ...


def load_samples(datasets: Iterable[Dataset]) -> list[Sample]:
    """The samples of all datasets, one after another; an id names one sample among them all."""
    return [sample for samples in load_sets(datasets) for sample in samples]


def load_sets(datasets: Iterable[Dataset]) -> list[list[Sample]]:
    """Each dataset's samples; an id names one sample among them all."""
    seen: dict[str, Sample] = {}
    sets: list[list[Sample]] = []
    for dataset in datasets:
        sets.append([timed(sample, dataset.frame_fps) for sample in read_records(dataset)])
        for sample in sets[-1]:
            if sample.id in seen:
                raise used_before(sample, seen[sample.id])
            seen[sample.id] = sample
    return sets


def read_records(dataset: Dataset) -> list[Sample]:
    """The samples as the data set's reader gives them; those of images may still have no times (`timed`)."""
    return _reader(dataset.reader)(dataset.path, dataset.media_root)


def timed(sample: Sample, frame_fps: float | None) -> Sample:
    """The sample with the data set's frame rate, if its record has several images and states no rate of its own."""
    source = sample.clip_source
    if source is None or source.frame_fps is not None or source.frame_times_s:
        return sample
    is_timeless = len(source.frames) > 1 or any(map(os.path.isdir, source.frames))
    if frame_fps is None and is_timeless:
        reason = "nothing says when its frames are shown: set frame_fps beside the data set's path"
        raise DataError(sample.source, reason)
    return replace(sample, clip_source=replace(source, frame_fps=frame_fps)) if source.frames else sample


def _reader(name: str) -> Reader:
    if name not in READERS:
        close = get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(READERS)}"
        raise ValueError(f"unknown reader {name!r}: {hint}")
    return READERS[name]
