"""The Qwen2.5-VL family: a clip is one run of pad tokens, whose positions are proportional to seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.media.clip import Clip
from grpo.policy.families.family import ModelFamily


@dataclass(frozen=True, kw_only=True)
class Qwen25VL(ModelFamily):
    """The Qwen2.5-VL family."""

    model_class = Qwen2_5_VLForConditionalGeneration

    def time_step(self, clip: Clip) -> float:
        """Return the seconds of a temporal patch, rounded as vLLM rounds them, times the positions of a second."""
        seconds = torch.tensor(
            self.patches.temporal_frames / clip.sample_fps, dtype=self.seconds_dtype
        ).item()
        return seconds * self.config.vision_config.tokens_per_second
