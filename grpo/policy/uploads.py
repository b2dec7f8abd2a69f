"""The patches of a step's clips on the device, made ahead of whoever needs them: engine, policy and reference.

What travels are bytes, as they were decoded, and the device puts them into the order of patches, once for all. They
stay bytes there, a quarter of the normalised values that each pass makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

import torch
from torch import Tensor

from grpo.media.clip import Clip

MAX_BYTES = 1 << 30
"""The patches that wait on the device ahead of their passes: a dozen clips of 16,000 vision tokens."""

Made = tuple[Tensor, torch.cuda.Event | None]
"""A clip's patches, and on a GPU the event after which they are there."""


def uploaded(clip: Clip, device: torch.device) -> Tensor:
    """Return a clip's frames as uint8 on the device, (F, H, W, C). Frames that are not decoded yet are waited for."""
    # A copy, since torch warns of read-only arrays.
    frames_FHWC = torch.from_numpy(clip.frames_FHWC.copy())
    if device.type == "cuda":
        # From pinned memory the copy doesn't wait for what the GPU is doing. Threads begin on the first GPU, whichever
        # is the process's own.
        with torch.cuda.device(device):
            frames_FHWC = frames_FHWC.pin_memory()
    return frames_FHWC.to(device, non_blocking=True)


class Uploads:
    """The patches of the clips that are expected: each clip's are made once, in a thread, in the order of its needs.

    Those of clips beyond `MAX_BYTES` are made by whoever needs them, each time, and not kept; clips of later steps take
    at most half of that. Any thread may call.
    """

    def __init__(self, patches_of: Callable[[Tensor], Tensor]) -> None:
        """Begin with none. patches_of: makes patches of a clip's frames (`ModelFamily.patches_of`)."""
        self._patches_of = patches_of
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
        self._lock = Lock()
        self._kept: dict[Clip, tuple[Future[Made], int]] = {}
        """The patches of each clip, and the last step that needs them."""
        self._cleared = 0
        """The last step that has ended."""

    def expect(self, clips: Iterable[Clip], device: torch.device, step: int = 0) -> list[Clip]:
        """Begin to make the patches that are not there yet, and return the clips whose patches are kept.

        step: they stay until `clear` is told of it; 0: of any step.
        """
        with self._lock:
            return [clip for clip in clips if self._expect(clip, device, step)]

    def _expect(self, clip: Clip, device: torch.device, step: int) -> bool:
        entry = self._kept.get(clip)
        if entry is None and not self._has_room(clip, step):
            return False
        future, last_step = entry or (None, step)
        if future is None or (future.done() and _is_lost(future)):
            future = self._thread.submit(self._made_ahead, clip, device)
        self._kept[clip] = future, max(last_step, step)
        return True

    def _has_room(self, clip: Clip, step: int) -> bool:
        own, now = num_bytes(clip), self._cleared + 1
        if sum(map(num_bytes, self._kept)) + own > MAX_BYTES:
            return False
        # What this step's passes need besides must find room, and its turn in the thread.
        of_later = (num_bytes(other) for other, (_, last_step) in self._kept.items() if last_step > now)
        return step <= now or sum(of_later) + own <= MAX_BYTES // 2

    def get(self, clip: Clip, device: torch.device) -> Tensor:
        """Return a clip's patches on the device, as bytes; those that were not expected are made now, and not kept.

        So are those whose making ahead failed: by now there may be the memory that was missing.
        """
        if (entry := self._kept.get(clip)) is None:
            return self._made(clip, device)
        future, _ = entry
        wait([future])
        if _is_lost(future):
            self.drop(clip)
            return self._made(clip, device)
        patches, made = future.result()
        if made is not None:
            # The reader's stream may be another than the thread's.
            stream = torch.cuda.current_stream(device)
            stream.wait_event(made)
            patches.record_stream(stream)
        return patches

    def drop(self, clip: Clip) -> None:
        """Drop a clip's patches, if there are any."""
        with self._lock:
            self._kept.pop(clip, None)

    def clear(self, step: int) -> None:
        """Drop all patches but those that later steps need."""
        with self._lock:
            self._cleared = max(self._cleared, step)
            for clip, (future, last_step) in [*self._kept.items()]:
                if last_step <= step:
                    future.cancel()
                    del self._kept[clip]

    def _made(self, clip: Clip, device: torch.device) -> Tensor:
        return self._patches_of(uploaded(clip, device))

    def _made_ahead(self, clip: Clip, device: torch.device) -> Made:
        patches = self._made(clip, device)
        if device.type != "cuda":
            return patches, None
        made = torch.cuda.Event()
        made.record(torch.cuda.current_stream(device))
        return patches, made


def _is_lost(future: Future[Made]) -> bool:
    """Return whether patches that were to be made, and no longer are, are not there."""
    return future.cancelled() or future.exception() is not None


def num_bytes(clip: Clip) -> int:
    return 3 * clip.num_frames * clip.height_px * clip.width_px
