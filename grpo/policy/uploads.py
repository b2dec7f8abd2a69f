"""The frames of a step's clips on the device, sent ahead of the passes that need them, once for all of them.

What travels are bytes, as they were decoded: patches in fp32 take four times as much, and the device makes them in the
time in which a CPU core would begin to.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from grpo.media.clip import Clip

MAX_BYTES = 1 << 30
"""The frames that wait on the device ahead of their passes: a dozen clips of 16,000 vision tokens."""


def uploaded(clip: Clip, device: torch.device) -> Tensor:
    """Return a clip's frames as uint8 on the device, (F, H, W, C). Frames that are not decoded yet are waited for."""
    # A copy, since torch warns of read-only arrays.
    frames_FHWC = torch.from_numpy(clip.frames_FHWC.copy())
    if device.type == "cuda":
        # From pinned memory the copy doesn't wait for what the GPU is doing.
        frames_FHWC = frames_FHWC.pin_memory()
    return frames_FHWC.to(device, non_blocking=True)


class Uploads:
    """The uploads of the clips that are expected: each is made once, in a thread, in the order of the passes.

    Clips beyond `MAX_BYTES` of frames are uploaded by each pass that needs them, and not kept.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
        self._frames: dict[Clip, Future[Tensor]] = {}
        self._num_bytes = 0

    def expect(self, clips: Iterable[Clip], device: torch.device) -> None:
        """Begin to upload the clips that are not there yet; they stay until `clear`."""
        for clip in clips:
            num_bytes = 3 * clip.num_frames * clip.height_px * clip.width_px
            if clip not in self._frames and self._num_bytes + num_bytes <= MAX_BYTES:
                self._num_bytes += num_bytes
                self._frames[clip] = self._thread.submit(uploaded, clip, device)

    def get(self, clip: Clip, device: torch.device) -> Tensor:
        """Return a clip's frames on the device; one that was not expected is uploaded now, and not kept."""
        upload = self._frames.get(clip)
        return uploaded(clip, device) if upload is None else upload.result()

    def clear(self) -> None:
        """Drop all frames."""
        for upload in self._frames.values():
            upload.cancel()
        self._frames.clear()
        self._num_bytes = 0
