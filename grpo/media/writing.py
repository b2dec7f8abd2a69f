"""The writing of data sets that are made here: small clips as files, and folders that are whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

X264_OPTIONS = {"crf": "18", "threads": "1", "x264-params": "bframes=0:mbtree=0"}
"""With B-frames and macroblock trees the encoder's look-ahead gives a few other bytes in one of ten runs."""


def write_mp4(path: str | os.PathLike[str], frames_FHWC: np.ndarray, *, fps: float) -> None:
    """Encode frames as H.264 (yuv420p, crf 18), the same bytes each time; height and width are even."""
    with av.open(os.fspath(path), "w", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.height, stream.width = frames_FHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame_HWC in frames_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))


def write_once(
    folder: str | os.PathLike[str], parameters: Mapping[str, object], write: Callable[[Path], None]
) -> Path:
    """Write a data set, all or nothing; a finished folder with these parameters is left alone.

    write: fills the empty folder that it is given. Safe when several processes ask for the same folder: one writes, the
    others wait. Raises ValueError for a folder that holds something else.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")):
        if _is_finished(folder, parameters):
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        (partial / "dataset.json").write_text(json.dumps(parameters) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    return folder


def _is_finished(folder: Path, parameters: Mapping[str, object]) -> bool:
    """Whether the folder was written with these parameters; False if it is ours to replace."""
    marker = folder / "dataset.json"
    if marker.is_file():
        return json.loads(marker.read_text(encoding="utf-8")) == parameters
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and was not written by this program: choose another")
    return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
