"""The Qwen3-VL family (dense): each temporal patch stands behind its time in text, and features enter several layers.

A video's single pad token becomes `<0.3 seconds><|vision_start|>pads<|vision_end|>` for each temporal patch, inside the
chat template's own pair of <|vision_start|> and <|vision_end|>, as transformers >= 5.10 and vLLM write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from grpo.media.clip import Clip
from grpo.policy.families.family import ModelFamily

LONGEST_TIME = "<99999.9 seconds>"
"""A time that has as many digits as any within a day."""


@dataclass(frozen=True, kw_only=True)
class Qwen3VL(ModelFamily):
    """The Qwen3-VL family."""

    model_class = Qwen3VLForConditionalGeneration
    merger_names = ("model.visual.merger", "model.visual.deepstack_merger_list")

    def video_ids(self, clip: Clip) -> list[int]:
        """Return the tokens that stand for a video: for each temporal patch its time, and its pads in their pair."""
        _, h, w = self.tokens_thw(clip)
        config = self.config
        pads = [config.vision_start_token_id, *[config.video_token_id] * (h * w), config.vision_end_token_id]
        times = [self._token_ids(f"<{time_s:.1f} seconds>") for time_s in self._patch_times_s(clip)]
        return [token for time_ids in times for token in (*time_ids, *pads)]

    def engine_times(self, clip: Clip) -> dict[str, Any]:
        return {"timestamps": [self._patch_times_s(clip)]}

    def _patch_times_s(self, clip: Clip) -> list[float]:
        """Return the time of each temporal patch: the mean of those of its first and its last frame."""
        times_PF = torch.tensor(clip.times_s, dtype=torch.float64).view(-1, self.patches.temporal_frames)
        return ((times_PF[:, 0] + times_PF[:, -1]) / 2).tolist()

    def most_clip_text_tokens(self, num_frames: int) -> int:
        """Return the most tokens that a clip of so many frames has beside its pads: times, and pairs around pads."""
        return num_frames // self.patches.temporal_frames * (len(self._token_ids(LONGEST_TIME)) + 2)

    def metadata(self, clip: Clip) -> dict[str, Any]:
        """Return what the processor and the engine are told: with one frame a second, a frame's number is its time."""
        return {**super().metadata(clip), "fps": 1.0, "frames_indices": list(clip.times_s)}

    @property
    def feature_width(self) -> int:
        """The length of one vision token's features: its embedding, and what it adds to some of the first layers."""
        return super().feature_width * (1 + len(self.config.vision_config.deepstack_visual_indexes))

    def features(self, output: Any) -> tuple[Tensor, ...]:
        """Return each clip's features, the embedding and what deepstack adds to the layers side by side."""
        lengths = [len(each) for each in output.pooler_output]
        embeds_MD = torch.cat(output.pooler_output)
        return torch.cat([embeds_MD, *output.deepstack_features], dim=-1).split(lengths)
