"""The Qwen2.5-VL family: how a sample becomes tokens, vision features and positions.

The engines and the learner both take these facts from here. Positions follow the reference
rule, not transformers' own (5.17 to 5.23 continue the text after the clip's larger *spatial* side, and cut
the seconds of a temporal patch to whole ones): with a long clip those differ from the positions in sampling.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from grpo.config.model import Part
from grpo.groups import Prompt, Sample
from grpo.media.clip import Clip
from grpo.media.sampling import PatchShape

INSTRUCTIONS = {
    "think": "First reason step by step inside <think> </think>.",
    "keyframes": "Then list the moments of the video that show the answer inside <keyframes> </keyframes>: "
    "seconds from its start, as numbers or spans such as 3.0-4.5, separated by commas.",
    "answer": "Finally give {what} inside <answer> </answer>.",
}
ANSWER_WHAT = {"choice": "only the letter of the right option", "number": "only the number"}


@dataclass(frozen=True, kw_only=True)
class Qwen25VL:
    """The family's facts as a model folder states them."""

    path: str
    processor: Any
    config: Any
    """The model's Qwen2_5_VLConfig, whose parts transformers types as optional dicts."""
    eos_ids: tuple[int, ...]
    """The tokens that end a completion, as the model's generation config lists them: vLLM stops there too."""
    seconds_dtype: torch.dtype
    """The precision that the seconds of a temporal patch are rounded to before they become positions, as vLLM does with
    the precision that it computes in."""

    @classmethod
    def load(cls, path: str, *, seconds_dtype: torch.dtype) -> Qwen25VL:
        processor = AutoProcessor.from_pretrained(path)
        eos = GenerationConfig.from_pretrained(path).eos_token_id or processor.tokenizer.eos_token_id
        return cls(
            path=path,
            processor=processor,
            config=Qwen2_5_VLConfig.from_pretrained(path),
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            seconds_dtype=seconds_dtype,
        )

    def load_model(
        self, dtype: torch.dtype, *, in_4bit_on: torch.device | None = None
    ) -> Qwen2_5_VLForConditionalGeneration:
        """Load the model. in_4bit_on: a device, for the language model's linear layers in NF4; None: no NF4."""
        options: dict[str, Any] = {}
        if in_4bit_on is not None:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=["lm_head", "model.visual"],
            )
            options["device_map"] = {"": in_4bit_on}
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(self.path, dtype=dtype, **options)
        for module in model.modules() if in_4bit_on is not None else ():
            # In evaluation mode on some CPUs, bitsandbytes repacks weights for kernels that have no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        return model

    def save_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights as a model folder, whatever form they are trained in."""
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(self.config)
        model.generation_config = GenerationConfig.from_pretrained(self.path)
        model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)

    @staticmethod
    def part_of(name: str) -> Part:
        """Return the part of the model that a module or weight belongs to."""
        if name.startswith("model.visual.merger"):
            return "merger"
        return "vision" if name.startswith("model.visual") else "language"

    @property
    def patch_px(self) -> int:
        return self.config.vision_config.patch_size

    @property
    def patches(self) -> PatchShape:
        """The shape of a vision token, whose multiples frames are sampled and resized to."""
        vision = self.config.vision_config
        return PatchShape(
            patch_px=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal_frames=vision.temporal_patch_size,
        )

    @property
    def temporal_patch(self) -> int:
        return self.config.vision_config.temporal_patch_size

    @property
    def vision_token_id(self) -> int:
        return self.config.video_token_id

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """The tokens that are never sampled: a vision pad token in a completion would have no feature."""
        return (self.config.image_token_id, self.config.video_token_id)

    def grid_thw(self, clip: Clip) -> tuple[int, int, int]:
        """Return the clip's grid of patches: time, height, width."""
        return (
            clip.num_frames // self.temporal_patch,
            clip.height_px // self.patch_px,
            clip.width_px // self.patch_px,
        )

    def num_vision_tokens(self, clip: Clip) -> int:
        t, h, w = self.grid_thw(clip)
        return t * h * w // self.config.vision_config.spatial_merge_size**2

    def render(
        self,
        sample: Sample,
        clip: Clip | None,
        *,
        template: str,
        option: str,
        tags: Sequence[str],
        system: str | None = None,
    ) -> Prompt:
        """Return the sample's prompt, its clip first, with one pad token per vision feature."""
        text = user_text(sample, template=template, option=option, tags=tags)
        rendered = padded = self._in_chat(text, system, has_clip=clip is not None)
        if clip is not None:
            pads = self.processor.video_token * self.num_vision_tokens(clip)
            padded = rendered.replace(self.processor.video_token, pads)
        return Prompt(sample=sample, clip=clip, token_ids=tuple(self._token_ids(padded)), tags=tuple(tags))

    def num_text_tokens(
        self, sample: Sample, *, template: str, option: str, tags: Sequence[str], system: str | None = None
    ) -> int:
        """Return the number of tokens of the sample's prompt beside its clip's."""
        has_clip = sample.clip_source is not None
        text = user_text(sample, template=template, option=option, tags=tags)
        return len(self._token_ids(self._in_chat(text, system, has_clip=has_clip))) - has_clip

    def _in_chat(self, text: str, system: str | None, *, has_clip: bool) -> str:
        """Return the user's turn in the model's chat format, with a single pad token for the clip."""
        content = [{"type": "video"}] if has_clip else []
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}]})
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if rendered.count(self.processor.video_token) != len(content):
            raise ValueError(f"its text has {self.processor.video_token}, which stands for a clip")
        return rendered

    def _token_ids(self, rendered: str) -> list[int]:
        return self.processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return a completion's text, special tokens visible, without the token that ended it."""
        if token_ids and token_ids[-1] in self.eos_ids:
            token_ids = token_ids[:-1]
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=False)

    def engine_video(self, clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the clip as vLLM and transformers take it: frames, and metadata that says they are sampled already."""
        return clip.frames_FHWC.copy(), {**self._metadata(clip), "do_sample_frames": False}

    def pixels(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Return the inputs of the vision tower: patches (M * merge**2, patch features) and grids (clips, 3)."""
        features = self.processor.video_processor(
            # A copy, since torch warns of read-only arrays.
            videos=[clip.frames_FHWC.copy() for clip in clips],
            video_metadata=[self._metadata(clip) for clip in clips],
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        return features["pixel_values_videos"], features["video_grid_thw"]

    def positions(self, prompt: Prompt) -> Tensor:
        """Return the mRoPE positions of a prompt, (3, S): rows time, height, width.

        Text counts up by one in all rows. A clip's temporal patches are `seconds * tokens_per_second` apart,
        rounded down, and the text after it goes on from the highest position of all three rows, plus one.
        Source: get_rope_index of the Qwen2.5-VL reference implementation; vLLM's get_mrope_input_positions.
        """
        num_tokens = len(prompt.token_ids)
        if prompt.clip is None:
            return torch.arange(num_tokens).expand(3, -1)
        start = prompt.token_ids.index(self.vision_token_id)
        t, h, w = self.grid_thw(prompt.clip)
        merge = self.config.vision_config.spatial_merge_size
        # The place of each vision token in the grid, (3, M); then the steps of time become positions.
        clip_3M = np.indices((t, h // merge, w // merge)).reshape(3, -1)
        clip_3M[0] = (clip_3M[0] * self._positions_per_patch(prompt.clip)).astype(np.int64)
        clip_3M += start
        after = np.arange(num_tokens - start - clip_3M.shape[1]) + clip_3M.max() + 1
        parts = [
            np.broadcast_to(np.arange(start), (3, start)),
            clip_3M,
            np.broadcast_to(after, (3, len(after))),
        ]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def check_vision_tokens(self, prompt: Prompt) -> None:
        """Raise ValueError unless the prompt has one pad token, in one run, per vision feature of its clip."""
        expected = self.num_vision_tokens(prompt.clip) if prompt.clip is not None else 0
        found = prompt.token_ids.count(self.vision_token_id)
        if found != expected:
            raise ValueError(
                f"sample {prompt.sample.id} ({prompt.sample.source}): {found} vision tokens for {expected} features"
            )

    def _positions_per_patch(self, clip: Clip) -> float:
        seconds = torch.tensor(self.temporal_patch / clip.sample_fps, dtype=self.seconds_dtype).item()
        return seconds * self.config.vision_config.tokens_per_second

    def _metadata(self, clip: Clip) -> dict[str, Any]:
        return {
            "fps": clip.sample_fps,
            "duration": clip.num_frames / clip.sample_fps,
            "total_num_frames": clip.num_frames,
            "frames_indices": list(range(clip.num_frames)),
            "video_backend": "pyav",
        }


def user_text(sample: Sample, *, template: str, option: str, tags: Sequence[str]) -> str:
    """Return the user's turn: question, options and instructions for the tags. Empty parts leave no blank line."""
    lettered = zip(string.ascii_uppercase, sample.options, strict=False)
    options = "\n".join(option.format(letter=letter, text=text) for letter, text in lettered)
    instruction = " ".join(INSTRUCTIONS[tag] for tag in tags).replace(
        "{what}", ANSWER_WHAT.get(sample.task, "the answer")
    )
    text = template.format(question=sample.question, options=options, instruction=instruction)
    return "\n".join(line for line in text.split("\n") if line.strip())
