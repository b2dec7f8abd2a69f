"""The Qwen2-VL family: a clip is one run of pad tokens, whose positions count temporal patches and know no seconds."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Qwen2VLForConditionalGeneration

from grpo.policy.families.family import ModelFamily


@dataclass(frozen=True, kw_only=True)
class Qwen2VL(ModelFamily):
    """The Qwen2-VL family."""

    model_class = Qwen2VLForConditionalGeneration
