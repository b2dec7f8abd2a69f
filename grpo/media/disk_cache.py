"""Decoded clips on disk, for all processes and runs that share a folder: a clip is decoded once in its life.

An entry is one safetensors file, named by all that went into it (`entry_name`). It is written under another
name and then renamed, so that nobody meets half of one, whoever is killed when; a checksum finds what the disk
damaged. The sum of all sizes is kept in a file, which is also the lock; a writer that would exceed the limit
lists the entries and removes those used longest ago.

The cache is never worth a run: what it can't read is decoded again, and after the first write that fails it
goes on without writing. Not diskcache: that keeps its index in SQLite, which network file systems break, and
its values as pickles, which run code when they are read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import av
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from grpo.media.clip import Clip, ClipFacts, ClipSource, MediaError
from grpo.media.frames import check_exists
from grpo.media.identity import Identity, identity
from grpo.media.images import choose_images
from grpo.media.sampling import MediaSettings, PatchShape

VERSION = 3
"""The version of the entries, raised with every change of what `read_clip` returns and of how it is stored."""
SUFFIX = ".clip"
KEPT_FRAC = 0.9
"""The share of the limit in use after making room: listing all entries for every single new one would be slow."""
MIN_FREE_GIB = 1.0
"""The space that is left free on the disk, for metrics and logs."""
ABANDONED_AFTER_S = 3600.0
"""The age from which an unfinished file belongs to a writer that was killed."""
MAX_WAITS = 3

logger = logging.getLogger(__name__)


def entry_name(source: ClipSource, settings: MediaSettings, patches: PatchShape) -> str:
    """Return a clip's name, the same wherever its files lie; MediaError if one of the files is missing."""
    if source.video is not None:
        files: dict[str, Any] = {"file": _identity(source.video)}
    else:
        chosen, paths, clip_end_s = choose_images(source, settings, patches)
        shown = [chosen.shown_s, chosen.sample_fps, clip_end_s]
        files = {"files": [_identity(path) for path in paths], "shown": shown}
        if source.is_picture:
            files["is_picture"] = True
    # Late: whoever reads a command's arguments does without it.
    import torch

    recipe = {
        "version": VERSION,
        # Another decoder or another resize may round differently.
        "libraries": [av.__version__, sorted(av.library_versions.items()), torch.__version__],
        **files,
        "part_s": [float(source.start_s), None if source.end_s is None else float(source.end_s)],
        "settings": {field.name: getattr(settings, field.name) for field in fields(MediaSettings)},
        "patches": asdict(patches),
    }
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=20).hexdigest()


class DiskCache:
    """A cache of at most max_gib of clips in a folder. Any thread, process or run may use it at once."""

    def __init__(self, folder: str | os.PathLike[str], *, max_gib: float, lock_s: float = 5.0) -> None:
        self.folder = Path(folder)
        self.max_bytes = int(max_gib * 2**30)
        self.lock_s = lock_s
        """The seconds that a writer waits for the others; one that was stopped holds the lock until it goes on."""
        self.is_writing = True
        """Whether clips are still stored; not after a write that failed or several timeouts of the lock in a row."""
        self._waited_in_vain = 0

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def load(self, name: str, path: str) -> Clip | None:
        """Return the clip that is stored under this name, as one of the file at path; None if there is none."""
        entry = self.load_arrays(name)
        return None if entry is None else _to_clip(entry, path)

    def store(self, name: str, clip: Clip) -> None:
        """Store the clip under this name, as `store_arrays` does."""
        facts = np.frombuffer(json.dumps(clip.facts.as_dict()).encode(), np.uint8)
        self.store_arrays(name, {"frames": clip.frames_FHWC, "facts": facts})

    def load_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Return the arrays that are stored under this name; None if there are none. A damaged entry is removed."""
        file = self._file(name)
        try:
            # No memory map: the page of an entry that another machine removes would end this process.
            entry = load(file.read_bytes())
            if entry.pop("checksum") != _checksum(entry):
                raise ValueError("its checksum is another")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # A folder that can't be used is reported by the first `store`.
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("%s: damaged (%s), decoding again", file, error)
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):
            # The folder of somebody else may be read, if not marked.
            os.utime(file)
        return entry

    def store_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store arrays under this name if they fit. A write that fails is logged, and nothing is stored any more."""
        entry = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        content = save({**entry, "checksum": _checksum(entry)})
        if not self.is_writing or len(content) > KEPT_FRAC * self.max_bytes:
            return
        try:
            self._write(self._file(name), content)
            self._waited_in_vain = 0
        except BlockingIOError:
            self._waited_in_vain += 1
            self.is_writing = self._waited_in_vain < MAX_WAITS
            logger.warning(
                "media.cache_dir: %s: another process holds the lock for over %g s; %s",
                self.folder,
                self.lock_s,
                "a clip is not stored" if self.is_writing else "going on without storing clips",
            )
        except OSError as error:
            if self.is_writing:
                logger.warning(
                    "media.cache_dir: %s: %s; going on without storing clips",
                    self.folder,
                    error.strerror or error,
                )
            self.is_writing = False

    def num_bytes(self) -> int:
        """Return the size of all entries, as found on the disk."""
        return sum(size for _, size, _ in self._entries())

    def _write(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free - len(content) < MIN_FREE_GIB * 2**30:
            raise OSError(errno.ENOSPC, f"less than {MIN_FREE_GIB:g} GiB of the disk are free")
        # Not tempfile's: its files are for one user only.
        unfinished = file.with_name(f".{uuid4().hex}{SUFFIX}")
        try:
            unfinished.write_bytes(content)
            self._admit(unfinished, file, len(content))
        finally:
            unfinished.unlink(missing_ok=True)

    def _admit(self, unfinished: Path, file: Path, num_bytes: int) -> None:
        """Make room and give the finished file its name."""
        with self._locked_total() as total:
            if file.exists():
                # Somebody else was faster.
                return
            before = _read_number(total)
            if before is None or before + num_bytes > self.max_bytes:
                before = self._make_room(num_bytes)
            # The sum first: a kill in between leaves it too large, which the next listing puts right.
            total.seek(0)
            total.write(b"%20d" % (before + num_bytes))
            total.flush()
            os.replace(unfinished, file)

    def _make_room(self, num_bytes: int) -> int:
        """Remove entries used longest ago until so many bytes fit; return the size of the rest."""
        entries = sorted(self._entries())
        kept_bytes = sum(size for _, size, _ in entries)
        limit = self.max_bytes if kept_bytes + num_bytes <= self.max_bytes else KEPT_FRAC * self.max_bytes
        for _, size, file in entries:
            if kept_bytes + num_bytes <= limit:
                break
            file.unlink(missing_ok=True)
            kept_bytes -= size
        return kept_bytes

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield each entry's last use, size and file; files of writers that were killed are removed on the way."""
        for file in self.folder.glob(f"*/*{SUFFIX}"):
            with suppress(FileNotFoundError):
                # Removed meanwhile.
                stat = file.stat()
                if not file.name.startswith("."):
                    yield stat.st_mtime, stat.st_size, file
                elif stat.st_mtime < time.time() - ABANDONED_AFTER_S:
                    file.unlink()

    @contextmanager
    def _locked_total(self) -> Iterator[BinaryIO]:
        with open(os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            _lock(file, self.lock_s)
            yield file

    def _file(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{SUFFIX}"


def _lock(file: BinaryIO, within_s: float) -> None:
    """Lock the file until it is closed or the process dies. BlockingIOError where others hold it for too long."""
    give_up_at = time.monotonic() + within_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(0.002)


def _identity(path: str) -> Identity:
    check_exists(path)
    try:
        return identity(path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error


def _to_clip(entry: Mapping[str, np.ndarray], path: str) -> Clip:
    facts = ClipFacts.from_dict(json.loads(entry["facts"].tobytes()))
    return Clip(replace(facts, path=path), entry["frames"])


def _checksum(entry: Mapping[str, np.ndarray]) -> np.ndarray:
    value = 0
    for name in sorted(entry):
        value = zlib.crc32(entry[name].data, value)
    return np.array([value], np.uint32)


def _read_number(file: BinaryIO) -> int | None:
    """Return the number in a file; None for a file that is new or damaged."""
    try:
        return int(file.read(100))
    except ValueError:
        return None
