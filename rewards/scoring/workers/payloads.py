"""Groups on their way to a worker: without their frames until a reward has looked at some."""

from __future__ import annotations

import io
import pickle
from functools import partial
from typing import Any, NoReturn

from grpo.groups import Group
from grpo.media.clip import Clip, MediaError


class FramesNeeded(BaseException):
    """A reward looked at frames, which it is not known to do: they were not sent. Not an Exception, so that no
    reward takes it for one of its own."""


class FreshGroup:
    """A group as it was sent, whatever a reward does to its arguments."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._group: Group | None = None
        self._fingerprint: bytes | None = None

    def take(self) -> Group:
        if self._group is None:
            self._group = load_group(self._payload)
            self._fingerprint = _fingerprint(self._group)
        return self._group

    def forget_changes(self) -> None:
        """Nobody shall see what a call has changed: the next one gets the group anew."""
        if self._group is not None and _fingerprint(self._group) != self._fingerprint:
            self._group = None


def dump_group(group: Group, *, with_frames: bool) -> bytes:
    """A group for a worker. Without frames it is a hundredth of the size, and most rewards read none.

    Frames that are decoded on demand are decoded here: once, and not by every worker that gets the group.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = {Clip: _reduce_loaded if with_frames else _reduce_to_facts}
    pickler.dump(group)
    return buffer.getvalue()


def load_group(payload: bytes) -> Group:
    return pickle.loads(payload)


def _fingerprint(group: Group) -> bytes | None:
    """Of what a reward could change of its arguments; the rest is frozen. None: of something beyond telling."""
    sample = group.prompt.sample
    kinds = [[*rollout.counterfactuals] for rollout in group.rollouts if rollout.counterfactuals]
    if not sample.columns and not kinds:
        return b""
    try:
        return pickle.dumps((sample.columns, kinds))
    except Exception:  # it has put something in that can't even be pickled
        return None


def _reduce_to_facts(clip: Clip) -> tuple[Any, tuple[Any, ...]]:
    return Clip, (clip.facts, _ask_for_frames)


def _reduce_loaded(clip: Clip) -> tuple[Any, tuple[Any, ...]]:
    try:
        return Clip, (clip.facts, clip.frames_FHWC)
    except Exception as error:  # for the reward that looks at them, if one does
        # Any other type may take a worker seconds to import, torch and all.
        is_light = isinstance(error, MediaError | ValueError | OSError)
        return Clip, (clip.facts, partial(_raise, MediaError(str(error)) if is_light else error))


def _ask_for_frames() -> NoReturn:
    raise FramesNeeded


def _raise(error: Exception) -> NoReturn:
    raise error
