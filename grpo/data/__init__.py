"""Readers: one small file per dataset format, each translating records into `Sample`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from grpo.data.check import check_media
from grpo.data.jsonl import read_jsonl
from grpo.groups import Sample

__all__ = ["READERS", "check_media", "load_samples"]

Reader = Callable[[str, str | None], list[Sample]]


def read_synthetic(path: str, media_root: str | None) -> list[Sample]:
    """The demo's clips (512 to train on, 200 held out), rendered into the file's folder on first use."""
    from grpo.data.synthetic import write_dataset  # late: only the demo renders

    write_dataset(Path(path).parent, num_train=512, num_heldout=200, seed=0)
    return read_jsonl(path, media_root)


READERS: dict[str, Reader] = {"jsonl": read_jsonl, "synthetic": read_synthetic}


class Dataset(Protocol):
    """What a dataset's entry in the config says."""

    @property
    def reader(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def media_root(self) -> str | None: ...


def load_samples(datasets: Iterable[Dataset]) -> list[Sample]:
    """The samples of all datasets, one after another; an id names one sample among them all."""
    samples: dict[str, Sample] = {}
    for dataset in datasets:
        for sample in _reader(dataset.reader)(dataset.path, dataset.media_root):
            if sample.id in samples:
                raise ValueError(
                    f"{sample.source}: id {sample.id!r} was already used in {samples[sample.id].source}"
                )
            samples[sample.id] = sample
    return list(samples.values())


def _reader(name: str) -> Reader:
    if name not in READERS:
        close = get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(READERS)}"
        raise ValueError(f"unknown reader {name!r}: {hint}")
    return READERS[name]
