"""Rollouts on their way to a worker: in a file in memory, without their frames until a reward has looked at some."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Any, NoReturn

import numpy as np

from grpo.groups import Rollout
from grpo.media.clip import Clip, MediaError
from grpo.workers.memory_file import MemoryFile, Place, array_at, read


class FramesNeeded(BaseException):
    """A reward looked at frames, which it is not known to do: they were not sent. Not an Exception, so that no
    reward takes it for one of its own."""


class Payloads:
    """The rollouts of some groups, which live as long as this: pickled once, and a clip's frames once for all."""

    def __init__(self) -> None:
        self._file, self._lock = MemoryFile(), Lock()
        self._places: dict[tuple[Any, ...], Place] = {}
        self._frames: dict[int, partial[Any]] = {}

    def place_of(self, parts: Sequence[Sequence[Rollout]], *, with_frames: bool) -> Place:
        """The place where a worker finds what a reward is to be called with, once for each part.

        Without frames it is a hundredth of the size.
        """
        key = (with_frames, *(tuple(map(id, rollouts)) for rollouts in parts))
        with self._lock:
            if key not in self._places:
                buffer = io.BytesIO()
                for rollouts in parts:
                    pickler = pickle.Pickler(buffer, protocol=5)
                    pickler.dispatch_table = {Clip: self._reduce if with_frames else _reduce_to_facts}
                    pickler.dump(rollouts)
                self._places[key] = self._file.append(buffer.getbuffer())
            return self._places[key]

    def _reduce(self, clip: Clip) -> tuple[Any, tuple[Any, ...]]:
        """Frames that are decoded on demand are decoded here: once, and not by every worker that looks at them."""
        if id(clip) not in self._frames:
            try:
                frames_FHWC = np.ascontiguousarray(clip.frames_FHWC)
                place = self._file.append(frames_FHWC)
                self._frames[id(clip)] = partial(array_at, place, frames_FHWC.shape)
            except Exception as error:
                # For the reward that looks at them, if one does.
                # Not the error itself, whose type may take a worker seconds to import, torch and all.
                self._frames[id(clip)] = partial(_raise, str(error))
        return Clip, (clip.facts, self._frames[id(clip)])


def load_parts(place: Place) -> Iterator[Sequence[Rollout]]:
    """The parts in that place, made anew one by one, so that no call sees what another has changed."""
    stream = io.BytesIO(read(place))
    while stream.tell() < place.size:
        yield pickle.load(stream)


def _reduce_to_facts(clip: Clip) -> tuple[Any, tuple[Any, ...]]:
    return Clip, (clip.facts, _ask_for_frames)


def _ask_for_frames() -> NoReturn:
    raise FramesNeeded


def _raise(why: str) -> NoReturn:
    raise MediaError(why)
