"""The comparison of frames with texts by a CLIP-like model, for `egogrpo annotate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.media.clip import Clip

Scores = list[tuple[float, float]]
"""Time in seconds of the clip, and score, ascending in time."""


class FrameScorer:
    """Cosines of frames and texts under a model with a common space for both."""

    def __init__(self, model_path: str, device: str | None = None) -> None:
        """device: a GPU by default, if there is one."""
        from transformers import AutoModel, AutoProcessor

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._model: Any = AutoModel.from_pretrained(model_path, local_files_only=True).to(device).eval()
            self._processor: Any = AutoProcessor.from_pretrained(model_path, local_files_only=True)
        except OSError as error:
            raise ValueError(f"--model: {' '.join(str(error).split())}") from error
        if not hasattr(self._model, "get_text_features") or not hasattr(self._model, "get_image_features"):
            raise ValueError(f"--model: {model_path} is no model with features of texts and of images")
        self._device = device

    @torch.inference_mode()
    def scores(self, clip: Clip, texts: Sequence[str]) -> Scores:
        """For each frame, the mean of its cosines with the texts."""
        images = self._processor.image_processor(images=[*clip.frames_FHWC], return_tensors="pt")
        tokens = self._processor.tokenizer(
            [*texts],
            # As SigLIP was trained; CLIP does not care.
            padding="max_length",
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        frames_FD = _unit(self._model.get_image_features(**images.to(self._device)))
        # One row for each text.
        of_texts = _unit(self._model.get_text_features(**tokens.to(self._device)))
        scores_F = (frames_FD @ of_texts.T).mean(dim=1).tolist()
        # A last frame that was repeated to fill a token in time counts once.
        return sorted(dict(zip(clip.times_s, scores_F, strict=True)).items())


def _unit(features: Any) -> Tensor:
    """Features of length 1, (rows, D)."""
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(pooled.float(), dim=-1)
