"""The Qwen2.5-VL family: a clip is one run of pad tokens, whose positions are proportional to seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.media.clip import Clip
from grpo.policy.families.family import ModelFamily


@dataclass(frozen=True, kw_only=True)
class Qwen25VL(ModelFamily):
    """The Qwen2.5-VL family."""

    model_class = Qwen2_5_VLForConditionalGeneration

    def time_step(self, clip: Clip) -> float:
        """Return the seconds of a temporal patch, rounded as vLLM rounds them, times the positions of a second."""
        return self._seconds(clip).item() * self.config.vision_config.tokens_per_second

    def engine_times(self, clip: Clip) -> dict[str, Any]:
        return {"second_per_grid_ts": self._seconds(clip)[None]}

    def _seconds(self, clip: Clip) -> Tensor:
        return torch.tensor(self.patches.temporal_frames / clip.sample_fps, dtype=self.seconds_dtype)
