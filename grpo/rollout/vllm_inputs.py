"""The inputs of vLLM in this process: a prompt's tokens, and the same patches of its clips as the learner sees.

vLLM's own processor would put each clip's bytes into the order of patches once more, one prompt after another. It only
makes the first video's and the first picture's inputs, with which ours are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from grpo.groups import Prompt, clips_of
from grpo.media.clip import Clip
from grpo.media.places import Kind, kind_of
from grpo.policy.model import Policy

PIXELS: dict[Kind, str] = {"video": "pixel_values_videos", "image": "pixel_values"}


class VLLMInputs:
    """The inputs of prompts; what is of a clip is made once, in a thread, and kept until the clip was sampled about."""

    def __init__(self, policy: Policy, llm: Any) -> None:
        self.policy, self.family, self.llm = policy, policy.family, llm
        self._thread = ThreadPoolExecutor(1, "inputs")
        self._made: dict[Clip, Future[tuple[Any, str]]] = {}
        self._compared: set[Kind] = set()

    @property
    def device(self) -> torch.device:
        """The device on which patches are made: the policy's, or the CPU for an outline without weights."""
        own = self.policy.device
        return torch.device("cpu") if own.type == "meta" else own

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        """Begin to make the inputs of a step's prompts, of as many as there is room for, the longest first."""
        clips = clips_of(sorted(prompts, key=lambda prompt: -len(prompt.token_ids)))
        self.begin(self.policy.uploads.expect(clips, self.device, step))

    def begin(self, clips: Iterable[Clip]) -> None:
        """Begin to make what is of clips; it stays until `drop`."""
        for clip in clips:
            if clip not in self._made:
                self._made[clip] = self._thread.submit(self._of_clip, clip)

    def is_ready(self, prompt: Prompt) -> bool:
        """Return whether a prompt's inputs are there, of clips that were begun."""
        return all(self._made[clip].done() for clip in prompt.clips)

    def of(self, prompt: Prompt) -> Any:
        """Return a prompt's inputs, of clips that were begun; raise ValueError if vLLM's processor makes others."""
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        token_ids = [*prompt.token_ids]
        if not prompt.clips:
            return tokens_input(token_ids)
        items, names, places = {}, {}, {}
        for clip, begin, clip_ids in self.family.clip_spans(prompt):
            kind, (item, name) = kind_of(clip), self._made[clip].result()
            pads = torch.tensor(clip_ids) == self.family.pad_id(clip)
            place = PlaceholderRange(begin, len(clip_ids), None if pads.all() else pads)
            for found, value in ((items, item), (names, name), (places, place)):
                found.setdefault(kind, []).append(value)
        inputs = mm_input(token_ids, MultiModalKwargsItems(items), names, places)
        if new := {*items} - self._compared:
            self._compare(prompt, inputs)
            self._compared |= new
        return inputs

    def drop(self, clips: Iterable[Clip]) -> None:
        """Drop what was made of clips."""
        for clip in clips:
            if (future := self._made.pop(clip, None)) is not None:
                future.cancel()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _of_clip(self, clip: Clip) -> tuple[Any, str]:
        """Return what vLLM's model is given of a clip, and the name under which vLLM keeps what it computes of it."""
        from transformers import BatchFeature
        from vllm.multimodal.inputs import MultiModalKwargsItems

        kind = kind_of(clip)
        values = BatchFeature(
            {
                PIXELS[kind]: self._pixels(clip),
                f"{kind}_grid_thw": torch.tensor([self.family.grid_thw(clip)]),
                **({} if clip.is_picture else self.family.engine_times(clip)),
            }
        )
        fields = self.llm.renderer.get_mm_processor()._get_mm_fields_config(values, {})
        [item] = MultiModalKwargsItems.from_hf_inputs(values, fields)[kind]
        # The same in all processes that share an engine. The prefix of a prompt depends on the times too.
        about = repr((clip.digest, clip.frames_FHWC.shape, kind, clip.sample_fps, clip.times_s))
        return item, hashlib.blake2b(about.encode(), digest_size=20).hexdigest()

    def _pixels(self, clip: Clip) -> Tensor:
        """Return a clip's patches in main memory: as bytes where vLLM's model normalises them, else normalised."""
        # Normalised values are four times the bytes, and the device's memory may be an update's.
        patches = self.policy.uploads.get(clip, self.device).cpu()
        if self.policy.feature_cache is not None:
            # A frozen tower sees a clip once in a run.
            self.policy.uploads.drop(clip)
        model = self.llm.model_config
        if not model.multimodal_config.mm_device_do_normalize:
            patches = self.family.pixels([clip], [patches])[0].to(model.dtype)
        return patches

    def _compare(self, prompt: Prompt, ours: Any) -> None:
        """Raise ValueError unless vLLM's own processor makes the same inputs of a prompt."""
        raw = {
            "prompt_token_ids": self.family.folded_ids(prompt),
            "multi_modal_data": self.family.engine_media(prompt),
        }
        theirs = self.llm._preprocess_cmpl_one(raw)
        for part in ("prompt_token_ids", "mm_placeholders", "mm_kwargs"):
            if theirs[part] != ours[part]:
                raise ValueError(
                    f"sample {prompt.sample.id}: vLLM's processor makes other inputs than the learner: {part}"
                )
