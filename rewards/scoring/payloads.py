"""Rollouts on their way to a worker: in a file in memory, without their frames until a reward has looked at some."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any, NoReturn

import numpy as np

from grpo.groups import Rollout
from grpo.media.clip import Clip, LazyClip, MediaError
from grpo.workers.memory_file import MemoryFile, Place, read


class FramesNeeded(BaseException):
    """A reward looked at frames, which it is not known to do: they were not sent. Not an Exception, so that no
    reward takes it for one of its own."""


class Payloads:
    """The rollouts of some groups, which live as long as this: each pickled once, and a clip's frames once for all."""

    def __init__(self) -> None:
        self._file, self._lock = MemoryFile(), Lock()
        self._places: dict[tuple[int, ...], Place] = {}
        self._frames: dict[int, tuple[Any, ...]] = {}

    def place_of(self, rollouts: Sequence[Rollout], *, with_frames: bool) -> Place:
        """Where a worker finds these rollouts. Without frames they are a hundredth of the size."""
        key = (with_frames, *map(id, rollouts))
        with self._lock:
            if key not in self._places:
                buffer = io.BytesIO()
                pickler = pickle.Pickler(buffer, protocol=5)
                reduce = self._reduce_with_frames if with_frames else _reduce_to_facts
                pickler.dispatch_table = {Clip: reduce, LazyClip: reduce}
                pickler.dump(rollouts)
                self._places[key] = self._file.append(buffer.getbuffer())
            return self._places[key]

    def _reduce_with_frames(self, clip: Clip | LazyClip) -> tuple[Any, tuple[Any, ...]]:
        """Frames that are decoded on demand are decoded here: once, and not by every worker that looks at them."""
        if id(clip) not in self._frames:
            try:
                frames_FHWC = np.ascontiguousarray(clip.frames_FHWC)
                self._frames[id(clip)] = (_read_frames, self._file.append(frames_FHWC), frames_FHWC.shape)
            except Exception as error:  # for the reward that looks at them, if one does
                # Any other type may take a worker seconds to import, torch and all.
                is_light = isinstance(error, MediaError | ValueError | OSError)
                self._frames[id(clip)] = (_raise, MediaError(str(error)) if is_light else error)
        return _lazy_clip, (_facts(clip), *self._frames[id(clip)])


def load_rollouts(place: Place) -> Sequence[Rollout]:
    """What was put there, made anew, so that no reward sees what another has changed."""
    return pickle.loads(read(place))


def _facts(clip: Clip | LazyClip) -> dict[str, Any]:
    return {
        "path": clip.path,
        "times_s": clip.times_s,
        "sample_fps": clip.sample_fps,
        "duration_s": clip.duration_s,
        "height_px": clip.height_px,
        "width_px": clip.width_px,
    }


def _reduce_to_facts(clip: Clip | LazyClip) -> tuple[Any, tuple[Any, ...]]:
    return _lazy_clip, (_facts(clip), _ask_for_frames)


def _lazy_clip(facts: Mapping[str, Any], load_frames: Any, *args: Any) -> LazyClip:
    return LazyClip(**facts, load_frames=partial(load_frames, *args))


def _read_frames(place: Place, shape: tuple[int, ...]) -> np.ndarray:
    frames_FHWC = np.frombuffer(read(place), np.uint8).reshape(shape)
    frames_FHWC.setflags(write=False)
    return frames_FHWC


def _ask_for_frames() -> NoReturn:
    raise FramesNeeded


def _raise(error: Exception) -> NoReturn:
    raise error
