"""The patches of a step's clips on the device, made ahead of whoever needs them: engine, policy and reference.

What travels are bytes, as they were decoded, and the device puts them into the order of patches, once for all. They
stay bytes there, a quarter of the normalised values that each pass makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import torch
from torch import Tensor

from grpo.media.clip import Clip

MAX_BYTES = 1 << 30
"""The patches that wait on the device ahead of their passes: a dozen clips of 16,000 vision tokens."""


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

    Those of clips beyond `MAX_BYTES` are made by whoever needs them, each time, and not kept. Any thread may call.
    """

    def __init__(self, patches_of: Callable[[Tensor], Tensor]) -> None:
        """Begin with none. patches_of: makes patches of a clip's frames (`ModelFamily.patches_of`)."""
        self._patches_of = patches_of
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
        self._lock = Lock()
        self._kept: dict[Clip, tuple[Future[Tensor], int]] = {}
        """The patches of each clip, and the last step that needs them."""

    def expect(self, clips: Iterable[Clip], device: torch.device, step: int = 0) -> list[Clip]:
        """Begin to make the patches that are not there yet, and return the clips whose patches are kept.

        step: they stay until `clear` is told of it; 0: of any step.
        """
        with self._lock:
            return [clip for clip in clips if self._expect(clip, device, step)]

    def _expect(self, clip: Clip, device: torch.device, step: int) -> bool:
        entry = self._kept.get(clip)
        if entry is None and sum(map(num_bytes, self._kept)) + num_bytes(clip) > MAX_BYTES:
            return False
        future, last_step = entry or (self._thread.submit(self._made, clip, device), step)
        self._kept[clip] = future, max(last_step, step)
        return True

    def get(self, clip: Clip, device: torch.device) -> Tensor:
        """Return a clip's patches on the device, as bytes; those that were not expected are made now, and not kept."""
        entry = self._kept.get(clip)
        return self._made(clip, device) if entry is None else entry[0].result()

    def clear(self, step: int) -> None:
        """Drop all patches but those that later steps need."""
        with self._lock:
            for clip, (future, last_step) in [*self._kept.items()]:
                if last_step <= step:
                    future.cancel()
                    del self._kept[clip]

    def _made(self, clip: Clip, device: torch.device) -> Tensor:
        return self._patches_of(uploaded(clip, device))


def num_bytes(clip: Clip) -> int:
    return 3 * clip.num_frames * clip.height_px * clip.width_px
