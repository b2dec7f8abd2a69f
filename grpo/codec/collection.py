"""The streams that a codec is made from: found by files, folders and patterns, of one kind, and parted into two."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grpo.codec.spec import CodecSpec, Kind, check_stream
from grpo.codec.streams import Stream, read_stream

CONSTANT = 1e-6
"""The deviation of a constant channel as a share of the largest value in its unit: float32 rounds by 6e-8 of it."""


def find_streams(entries: Sequence[str]) -> list[Path]:
    """The files of entries, each a file, a folder of `.npz` files at any depth, or a pattern; sorted, each once."""
    return sorted({path for entry in entries for path in _files(entry)})


def read_streams(paths: Sequence[Path], *, min_steps: int) -> list[Stream]:
    """The streams of files; ValueError names the first that is broken, too short, or unlike the first one."""
    streams = [read_stream(path) for path in paths]
    spec = spec_of("streams", "plain", streams[0], levels=1, codebook_size=2, downsampling=1)
    for path, stream in zip(paths, streams, strict=True):
        try:
            check_stream(spec, stream)
        except ValueError as error:
            raise ValueError(f"{path}: unlike {paths[0]}: {error}") from error
        if len(stream.values_TC) < min_steps:
            raise ValueError(
                f"{path}: {len(stream.values_TC)} time steps are fewer than a window's {min_steps}"
            )
    return streams


def spec_of(
    name: str, kind: Kind, stream: Stream, *, levels: int, codebook_size: int, downsampling: int
) -> CodecSpec:
    """The spec of a codec for streams like this one."""
    return CodecSpec(
        name=name,
        kind=kind,
        levels=levels,
        codebook_size=codebook_size,
        downsampling=downsampling,
        rate_hz=stream.rate_hz,
        channels=stream.channels,
        units=stream.units,
    )


def varies(values_NC: np.ndarray, units: Sequence[str]) -> np.ndarray:
    """Which channels (C,) are not constant: they change by more than the rounding errors of values in their unit."""
    names, std_C = np.array(units), values_NC.std(axis=0)
    scale_C = np.array([np.abs(values_NC[:, names == unit]).max() for unit in units])
    return std_C > CONSTANT * scale_C


def parted(streams: Sequence[Stream], held_out_frac: float, seed: int) -> tuple[list[Stream], list[Stream]]:
    """Streams to train on and streams to measure on, at least one of each, drawn by the seed."""
    if len(streams) < 2:
        raise ValueError("one stream is too few: a codec is measured on streams that it was not made from")
    num_held_out = min(max(1, round(held_out_frac * len(streams))), len(streams) - 1)
    order = np.random.default_rng(seed).permutation(len(streams))
    held_out = set(order[:num_held_out].tolist())
    kept = [stream for index, stream in enumerate(streams) if index not in held_out]
    return kept, [streams[index] for index in sorted(held_out)]


def _files(entry: str) -> list[Path]:
    if Path(entry).is_dir():
        found = list(Path(entry).rglob("*.npz"))
    elif Path(entry).is_file():
        found = [Path(entry)]
    else:
        found = [Path(path) for path in glob.glob(entry, recursive=True)]
    if not found:
        raise ValueError(
            f"streams: no file {entry}, and no .npz file in a folder or by a pattern of this name"
        )
    return found
