"""A cache of a frozen vision tower's output per clip, in memory and on disk, for every later pass.

An entry is named by the clip's own pixels and by the tower that saw them, so the same frames have the same features
wherever they come from, and a changed tower never finds another one's. Each clip goes through the tower alone: its
features don't depend on which other clips were missing too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from grpo.media.clip import Clip
from grpo.media.disk_cache import DiskCache
from grpo.media.memory_cache import MemoryCache

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""The largest difference of features on disk from fresh ones, as a share of the largest feature: kernels differ."""


@dataclass(slots=True)
class FeatureCounters:
    """The number of clips that went through the tower, and of those that were in the cache."""

    computed: int = 0
    reused: int = 0


class FeatureCache:
    """The cache of features: in memory, as long as there is room, and on disk, if a disk cache is given.

    tower: the frozen vision tower with its merger.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        memory: MemoryCache,
        disk: DiskCache | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a cache; `about` has the settings that features depend on beside weights and frames."""
        self.tower, self.memory, self.disk = tower, memory, disk
        self.about = json.dumps(about or {}, sort_keys=True, default=str)
        self.counters = FeatureCounters()
        self._tower_digest: str | None = None
        self._disk_is_trusted = False

    def get(self, clip: Clip, compute: Callable[[Clip], Tensor]) -> Tensor:
        """Return the clip's features (M, D) on the tower's device; `compute` is called if none are cached."""
        name = self._name(clip)
        if (kept_MD := self.memory.get(name)) is not None:
            self.counters.reused += 1
            return kept_MD.to(self._device)
        features_MD = self._from_disk(name, clip, compute)
        if features_MD is None:
            features_MD = compute(clip)
            self.counters.computed += 1
            if self.disk is not None:
                self.disk.store_arrays(name, _to_arrays(features_MD))
        kept_MD = features_MD.detach().cpu()
        self.memory.put(name, kept_MD, kept_MD.nbytes)
        return features_MD

    @property
    def _device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def _from_disk(self, name: str, clip: Clip, compute: Callable[[Clip], Tensor]) -> Tensor | None:
        entry = None if self.disk is None else self.disk.load_arrays(name)
        if entry is None:
            return None
        features_MD = _to_tensor(entry).to(self._device)
        if not self._disk_is_trusted and not self._is_fresh(features_MD, compute(clip)):
            logger.warning("media.cache_dir: vision features on disk are not this tower's; going on without")
            self.disk = None
            return None
        self._disk_is_trusted = True
        self.counters.reused += 1
        return features_MD

    def _is_fresh(self, kept_MD: Tensor, fresh_MD: Tensor) -> bool:
        """Return whether features that another run has cached equal fresh ones; this is checked once."""
        if kept_MD.shape != fresh_MD.shape or kept_MD.dtype != fresh_MD.dtype:
            return False
        limit = TOLERANCE[fresh_MD.dtype] * fresh_MD.abs().max()
        return bool((kept_MD - fresh_MD).abs().max() <= limit)

    def _name(self, clip: Clip) -> str:
        """Return a digest of what the features depend on: the pixels, the tower, and how it computes."""
        device = self._device.type
        computes_in = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "own"
        recipe = [
            clip.digest, clip.frames_FHWC.shape, self.tower_digest, self.about, device, computes_in,
            torch.__version__, transformers.__version__,
        ]  # fmt: skip
        # Pictures are normalised otherwise than frames in some models.
        recipe += ["picture"] if clip.is_picture else []
        return hashlib.blake2b(json.dumps(recipe).encode(), digest_size=20).hexdigest()

    @property
    def tower_digest(self) -> str:
        """The digest of all the tower's weights, computed once; a few seconds for a large tower."""
        if self._tower_digest is None:
            digest = hashlib.blake2b(digest_size=20)
            for name, weight in self.tower.named_parameters():
                digest.update(f"{name} {weight.dtype} ".encode())
                digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._tower_digest = digest.hexdigest()
        return self._tower_digest


def _to_arrays(features_MD: Tensor) -> dict[str, np.ndarray]:
    """Return features as bytes with the name of their dtype, since numpy has no bfloat16."""
    data = features_MD.detach().cpu().contiguous()
    dtype = str(data.dtype).removeprefix("torch.")
    return {
        "features": data.view(torch.uint8).numpy(),
        "dtype": np.frombuffer(dtype.encode(), np.uint8),
    }


def _to_tensor(entry: dict[str, np.ndarray]) -> Tensor:
    dtype = getattr(torch, entry["dtype"].tobytes().decode())
    return torch.from_numpy(entry["features"].copy()).view(dtype)
