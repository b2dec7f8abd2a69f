"""Files and folders that are whole on the disk or not there, also after a power failure, and errors that name the disk.

A reader never meets a half-written file: everything is written under another name, flushed, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PROBE_BYTES = 1 << 20

DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
UNSUPPORTED = (errno.EPERM, errno.EINVAL, errno.ENOTSUP)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path to write a file to, which has its own name when the block has ended, and only then."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    flush(partial)
    partial.replace(path)


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename a folder that is complete to its name, in the place of an older one, after all of it is on the disk.

    Its files become as readable as the folder: safetensors writes files that nobody else can read.
    """
    for each in partial.rglob("*"):
        if each.is_file():
            with _where_supported():
                each.chmod(partial.stat().st_mode & 0o666)
        flush(each)
    flush(partial)
    older = folder.with_name(f".{folder.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if folder.exists():
        folder.rename(older)
    partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(older, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with _where_supported():
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _where_supported() -> Iterator[None]:
    """Pass over what mounts of other systems (CIFS, FUSE) refuse: modes, and the flushing of folders."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextmanager
def disk_errors(folder: Path, *, removes: bool = True) -> Iterator[None]:
    """Turn libraries' words for a disk that takes no more ("basic_ios::clear") into the OSError behind them.

    What was written to the folder is removed, since it is of no use and fills the disk. removes: whether by this
    process; where several write to the folder, one of them.
    """
    try:
        yield
    except BaseException as error:
        try:
            if isinstance(error, RuntimeError | SafetensorError):
                _probe(folder)
        finally:
            if removes:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _probe(folder: Path) -> None:
    """Raise OSError with the path if a folder's disk can't take a small file."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
        flush(probe)
    except OSError as error:
        # Anything else, as a folder that is gone, would hide the error that is looked into.
        if error.errno not in DISK_FAILS:
            return
        raise OSError(error.errno, os.strerror(error.errno or 0), str(folder)) from error
