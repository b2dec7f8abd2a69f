"""How many completions an engine decodes at once, and what is done when its memory does not suffice for them."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)


@dataclass
class Concurrency:
    """The most completions that are decoded at once, halved the first time that memory does not suffice."""

    most: int
    is_halved: bool = False

    def halve(self, error: RuntimeError, at_once: int) -> None:
        """Halve the number and say so; raise the error if it is not of memory, or if that has been done before.

        at_once: the completions that were asked for, which may be fewer than the most.
        """
        if self.is_halved or not should_reduce_batch_size(error):
            raise error
        self.is_halved = True
        self.most = max(1, min(self.most, at_once) // 2)
        logger.warning(
            "rollout: out of memory; from here on at most %d completions are sampled at once", self.most
        )
        # What the failed pass had computed is in its frames, which the error holds.
        traceback.clear_frames(error.__traceback__)
        clear_device_cache(garbage_collection=True)
