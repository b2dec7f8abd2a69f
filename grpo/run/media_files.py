"""The media files that a run began with, and whether they still are the same: `media_files.json` in the run's folder.

A file that was replaced under a run would give its questions other frames, without a word. It is named, and loses its
groups.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from itertools import compress
from pathlib import Path

from grpo.groups import Prompt, Sample
from grpo.media.clip import Clip, MediaError
from grpo.media.identity import Identity, identity
from grpo.run.disk import write_text

Render = Callable[[Sample, Sequence[Clip]], Prompt]

NUM_THREADS = 16


class MediaFiles:
    """The identities of media files as a run found them first, by path."""

    def __init__(self, known: Mapping[str, Identity]) -> None:
        self.known = dict(known)

    @classmethod
    def read(cls, file: Path) -> MediaFiles:
        """Read a run's file; raise ValueError if it is damaged. A run that has none knows nothing yet."""
        if not file.exists():
            return cls({})
        try:
            stored = json.loads(file.read_bytes())
            return cls(
                {path: (int(size), int(mtime), str(ends)) for path, (size, mtime, ends) in stored.items()}
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"run_dir: {file}: {error}; it says what media the run has read: put it back, or remove it to trust "
                "the files as they are"
            ) from error

    def write(self, file: Path) -> None:
        write_text(file, json.dumps(self.known) + "\n")

    def learn(self, paths: Sequence[str]) -> list[tuple[str, Identity]]:
        """Return the identities of files that are not known yet; those that can't be read are left out."""
        new = [path for path in paths if path not in self.known]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = zip(new, pool.map(_identity, new), strict=True)
            return [(path, its) for path, its in found if its is not None]

    def lost(self, paths: Sequence[str]) -> set[str]:
        """Return those of these files that the run has known, and that are gone or others now."""
        known = [path for path in paths if path in self.known]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            is_lost = pool.map(lambda path: self._is_other(path) or not os.path.exists(path), known)
            return {*compress(known, is_lost)}

    def guarded(self, render: Render) -> Render:
        """Return the renderer of prompts that raises MediaError for a clip whose file is another one now."""

        @wraps(render)
        def checked(sample: Sample, clips: Sequence[Clip]) -> Prompt:
            for path in files_of(sample):
                if self._is_other(path):
                    raise MediaError(f"{path}: has changed since the run began; its question is left out")
            return render(sample, clips)

        return checked

    def _is_other(self, path: str) -> bool:
        if path not in self.known:
            return False
        size, mtime, ends = self.known[path]
        with suppress(OSError):
            stat = os.stat(path)
            if (stat.st_size, stat.st_mtime_ns) == (size, mtime):
                return False
        found = _identity(path)
        # A copy has another time.
        return found is not None and (found[0], found[2]) != (size, ends)


def files_of(sample: Sample) -> list[str]:
    """Return the files that tell what a sample shows from others, each once: its videos and streams, and of a clip that
    is made of images their folder, or the first and the last of them.
    """
    ends = [
        (source.frames[0], source.frames[-1]) if source.video is None else (source.video,)
        for source in sample.sources
    ]
    return [*dict.fromkeys(path for paths in (*ends, sample.streams.values()) for path in paths)]


def all_files(samples: Iterable[Sample]) -> list[str]:
    """Return the files of all samples, each once, in order."""
    return sorted({path for sample in samples for path in files_of(sample)})


def _identity(path: str) -> Identity | None:
    """Return a file's identity, or that of a folder's list of names and sizes; None if it can't be read."""
    try:
        if not os.path.isdir(path):
            return identity(path)
        entries = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path))
        digest = hashlib.blake2b(json.dumps(entries).encode(), digest_size=16).hexdigest()
        return len(entries), os.stat(path).st_mtime_ns, digest
    except OSError:
        return None
