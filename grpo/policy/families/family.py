"""What a model family is to the rest of the program, and the rules that the families share.

How a sample becomes tokens, pixels and positions, and how the model is loaded, divided into parts and saved: engines
and learner both take these facts from here. The rules are those of the simplest family, whose clip is one run of pad
tokens; a family is a subclass that states what it does otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from grpo.codec.prompts import StreamCodes
from grpo.codec.vocabulary import CODECS_FOLDER, Vocabulary, read_vocabulary
from grpo.config.model import Part
from grpo.groups import Prompt, Sample, main_index
from grpo.media.clip import Clip, Shown
from grpo.media.places import Kind, kind_of
from grpo.media.sampling import PatchShape
from grpo.policy.model_folder import copy_description, find_model_folder
from grpo.policy.prompt_text import Wording, user_content, user_text


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """The family's facts as a model folder states them."""

    model_class: ClassVar[type[PreTrainedModel]]
    merger_names: ClassVar[tuple[str, ...]] = ("model.visual.merger",)
    """How the names of modules and weights begin that lead from the vision tower to the language model."""

    path: str
    processor: Any
    config: Any
    """The model's config, whose parts transformers types as optional dicts."""
    eos_ids: tuple[int, ...]
    """The tokens that end a completion, as the model's generation config lists them: vLLM stops there too."""
    seconds_dtype: torch.dtype = torch.float32
    """The precision that vLLM computes in, in which it also holds the seconds of a temporal patch."""
    vocabulary: Vocabulary | None = None
    """The model's tokens of codecs; None for a model without."""

    @classmethod
    def load(cls, path: str, *, seconds_dtype: torch.dtype) -> Self:
        processor = AutoProcessor.from_pretrained(path)
        eos = GenerationConfig.from_pretrained(path).eos_token_id or processor.tokenizer.eos_token_id
        return cls(
            path=path,
            processor=processor,
            config=AutoConfig.from_pretrained(path),
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            seconds_dtype=seconds_dtype,
            vocabulary=read_vocabulary(find_model_folder(path)),
        )

    @cached_property
    def stream_codes(self) -> StreamCodes:
        """The codes that stand for samples' streams in prompts and targets."""
        return StreamCodes(find_model_folder(self.path) / CODECS_FOLDER)

    # What a family may do otherwise.

    def video_ids(self, clip: Clip) -> list[int]:
        """Return the tokens that stand for a video in a prompt, with one pad token per vision feature."""
        return [self.pad_id(clip)] * self.num_vision_tokens(clip)

    def most_clip_text_tokens(self, num_frames: int) -> int:
        """Return the most tokens that a clip of so many frames has beside its pads."""
        return 0

    def metadata(self, clip: Clip) -> dict[str, Any]:
        """Return what the processor and the engine are told about a clip that is sampled already."""
        return {
            "fps": clip.sample_fps,
            "duration": clip.num_frames / clip.sample_fps,
            "total_num_frames": clip.num_frames,
            "frames_indices": list(range(clip.num_frames)),
            "video_backend": "pyav",
        }

    def time_step(self, clip: Clip) -> float:
        """Return by how many positions the temporal patches of a run of pad tokens are apart."""
        return 1.0

    @property
    def feature_width(self) -> int:
        """The length of one vision token's features."""
        return self.config.text_config.hidden_size

    def engine_times(self, clip: Clip) -> dict[str, Any]:
        """Return what vLLM's model is told of a video's times beside its patches, by the names that it has there."""
        return {}

    def features(self, output: Any) -> tuple[Tensor, ...]:
        """Return each clip's features, (M, feature_width), from what the model's `get_video_features` returns."""
        return tuple(output.pooler_output)

    # What all share: the model.

    def load_model(self, dtype: torch.dtype, *, in_4bit_on: torch.device | None = None) -> PreTrainedModel:
        """Load the model. in_4bit_on: a device, for the language model's linear layers in NF4; None: no NF4."""
        # Other formats are pickles.
        options: dict[str, Any] = {"use_safetensors": True}
        if in_4bit_on is not None:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=["lm_head", "model.visual"],
            )
            options["device_map"] = {"": in_4bit_on}
        model = self.model_class.from_pretrained(self.path, dtype=dtype, **options)
        for module in model.modules():
            # In evaluation mode on some CPUs, bitsandbytes repacks weights for kernels that have no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        return model

    def outline(self) -> PreTrainedModel:
        """Return the model without its weights."""
        with torch.device("meta"):
            return self.model_class(copy.deepcopy(self.config))

    def save_model(self, folder: Path, weights: dict[str, Tensor], *, max_shard_size: str) -> None:
        """Write weights as a model folder, in files of a size, whatever form they are trained in.

        All other files are those of the family's folder: an older transformers that loads that one loads this one,
        while it would not take the config and the tokenizer that a newer one writes.
        """
        self.outline().save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
        copy_description(find_model_folder(self.path), folder)

    def part_of(self, name: str) -> Part:
        """Return the part of the model that a module or weight belongs to."""
        if name.startswith(self.merger_names):
            return "merger"
        return "vision" if name.startswith("model.visual") else "language"

    @property
    def has_sliding_windows(self) -> bool:
        """Whether layers of the language model attend to the latest tokens alone."""
        return "sliding_attention" in (self.config.text_config.to_dict().get("layer_types") or ())

    # What all share: tokens.

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
    def vision_token_ids(self) -> tuple[int, int]:
        """The pad tokens of images and of videos."""
        return (self.config.image_token_id, self.config.video_token_id)

    def pad_id(self, clip: Clip) -> int:
        return self.vision_token_ids[not clip.is_picture]

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """The tokens that are never sampled: a vision pad token in a completion would have no feature."""
        return self.vision_token_ids

    def tokens_thw(self, clip: Clip) -> tuple[int, int, int]:
        """Return the clip's vision tokens along time, height and width."""
        shape = self.patches
        return (
            clip.num_frames // shape.temporal_frames,
            clip.height_px // shape.token_px,
            clip.width_px // shape.token_px,
        )

    def num_vision_tokens(self, clip: Clip) -> int:
        t, h, w = self.tokens_thw(clip)
        return t * h * w

    def clip_ids(self, clip: Clip) -> list[int]:
        """Return the tokens that stand for a clip in a prompt, with one pad token per vision feature."""
        return [self.pad_id(clip)] * self.num_vision_tokens(clip) if clip.is_picture else self.video_ids(clip)

    def render(self, sample: Sample, shown: Shown, **wording: Unpack[Wording]) -> Prompt:
        """Return the sample's prompt, with one pad token per vision feature of what is shown.

        shown: its clip, or all of several media in order.
        """
        clips = () if shown is None else (shown,) if isinstance(shown, Clip) else tuple(shown)
        text = self.prompt_text(sample, [kind_of(clip) for clip in clips], **wording)
        parts = self._around_pads(self._token_ids(text))
        token_ids = [*parts[0]]
        for clip, part in zip(clips, parts[1:], strict=True):
            token_ids += [*self.clip_ids(clip), *part]
        return Prompt(
            sample=sample,
            clip=clips[main_index(clips)] if clips else None,
            media=clips if sample.media else (),
            text=text,
            token_ids=tuple(token_ids),
            tags=tuple(wording["tags"]),
        )

    def folded_ids(self, prompt: Prompt) -> list[int]:
        """Return the prompt's tokens with a single pad token for each clip, which the engine expands again."""
        folded, end = [], 0
        for clip, begin, clip_ids in self.clip_spans(prompt):
            folded += [*prompt.token_ids[end:begin], self.pad_id(clip)]
            end = begin + len(clip_ids)
        return [*folded, *prompt.token_ids[end:]]

    def clip_spans(self, prompt: Prompt) -> Iterator[tuple[Clip, int, list[int]]]:
        """Yield each clip of a prompt with the place where its tokens begin, and these tokens."""
        end = 0
        for clip in prompt.clips:
            clip_ids, pad = self.clip_ids(clip), self.pad_id(clip)
            begin = prompt.token_ids.index(pad, end) - clip_ids.index(pad)
            yield clip, begin, clip_ids
            end = begin + len(clip_ids)

    def num_text_tokens(self, sample: Sample, **wording: Unpack[Wording]) -> int:
        """Return the number of tokens of the sample's prompt beside those of what it shows."""
        kinds: list[Kind] = [kind_of(source) for source in sample.sources]
        return len(self._token_ids(self.prompt_text(sample, kinds, **wording))) - len(kinds)

    def prompt_text(self, sample: Sample, kinds: Sequence[Kind], **wording: Unpack[Wording]) -> str:
        """Return the text of the sample's prompt, with a single pad token for each clip. kinds: of the clips."""
        given = wording.get("system")
        system = sample.system if given is None else given
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        whole, tags = wording.get("user"), wording["tags"]
        text = (
            user_text(sample, template=wording["template"], option=wording["option"], tags=tags)
            if whole is None
            else whole(sample)
        )
        text = self.stream_codes.in_text(text, sample)
        messages.append({"role": "user", "content": user_content(text, kinds, is_placed=bool(sample.media))})
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for kind in get_args(Kind):
            token = getattr(self.processor, f"{kind}_token")
            if rendered.count(token) != [*kinds].count(kind):
                raise ValueError(f"its text has {token}, which stands for {ARTICLES[kind]}")
        return rendered

    def _token_ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _around_pads(self, token_ids: Sequence[int]) -> list[list[int]]:
        """Return the tokens before, between and behind single pad tokens."""
        parts: list[list[int]] = [[]]
        for token in token_ids:
            if token in self.vision_token_ids:
                parts.append([])
            else:
                parts[-1].append(token)
        return parts

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a completion that ends behind a text; ValueError if it has one that is never sampled."""
        token_ids = self._token_ids(text)
        if {*token_ids} & {*self.suppressed_ids}:
            raise ValueError("a completion must not have the token that stands for a clip or a picture")
        if self.vocabulary is not None:
            self.vocabulary.check([*token_ids, self.eos_ids[0]])
        return (*token_ids, self.eos_ids[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return a completion's text, special tokens visible, without the token that ended it."""
        if token_ids and token_ids[-1] in self.eos_ids:
            token_ids = token_ids[:-1]
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=False)

    def check_vision_tokens(self, prompt: Prompt) -> None:
        """Raise ValueError unless the prompt has one pad token of its kind per vision feature of each clip."""
        for pad in self.vision_token_ids:
            expected = sum(self.num_vision_tokens(clip) for clip in prompt.clips if self.pad_id(clip) == pad)
            found = prompt.token_ids.count(pad)
            if found != expected:
                sample = prompt.sample
                raise ValueError(
                    f"sample {sample.id} ({sample.source}): {found} vision tokens for {expected} features"
                )

    # What all share: pixels and positions.

    def engine_video(self, clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the clip as vLLM and transformers take it: frames, and metadata that says they are sampled already."""
        return clip.frames_FHWC.copy(), {**self.metadata(clip), "do_sample_frames": False}

    def engine_media(self, prompt: Prompt) -> dict[str, list[Any]]:
        """Return what a prompt shows as vLLM takes it: videos and images, each kind in order."""
        media: dict[str, list[Any]] = {}
        for clip in prompt.clips:
            medium = picture_of(clip) if clip.is_picture else self.engine_video(clip)
            media.setdefault(kind_of(clip), []).append(medium)
        return media

    def patches_of(self, frames_FHWC: Tensor) -> Tensor:
        """Return a clip's patches as bytes, (M * merge**2, values of a patch), on the device that its frames are on.

        Bytes are put into order, which are a quarter of the normalised values.
        """
        processor = self.processor.video_processor
        bytes_1QX, *_ = processor.patchify(
            frames_FHWC.permute(0, 3, 1, 2)[None],
            patch_size=processor.patch_size,
            merge_size=processor.merge_size,
            temporal_patch_size=processor.temporal_patch_size,
        )
        return bytes_1QX[0]

    def grid_thw(self, clip: Clip) -> list[int]:
        """Return the clip's patches along time, height and width."""
        t, h, w = self.tokens_thw(clip)
        return [t, h * self.patches.merge, w * self.patches.merge]

    def pixels(self, clips: Sequence[Clip], patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the vision tower's inputs: normalised patches, one clip after another, and grids (clips, 3).

        patches: each clip's (`patches_of`). What is made of them equals the processor's.
        """
        made = [self._normalised(each, clip.is_picture) for clip, each in zip(clips, patches, strict=True)]
        return torch.cat(made), torch.tensor([self.grid_thw(clip) for clip in clips])

    def _normalised(self, bytes_QX: Tensor, is_picture: bool) -> Tensor:
        """Return a clip's patches, normalised. The axis of patches is Q, that of values X, channel by channel."""
        processor = self.processor.video_processor
        # As the processor does: values are not divided by 255, but mean and std multiplied. Images have their own.
        stated = self.processor.image_processor if is_picture else processor
        mean_C, std_C = (
            torch.tensor(each, device=bytes_QX.device) * (1.0 / stated.rescale_factor)
            for each in (stated.image_mean, stated.image_std)
        )
        values_QCX = bytes_QX.unflatten(1, (len(mean_C), -1)).float()
        return values_QCX.sub_(mean_C[:, None]).div_(std_C[:, None]).flatten(1)

    def positions(self, prompt: Prompt) -> Tensor:
        """Return the mRoPE positions of a prompt, (3, S): rows time, height, width.

        Text counts up by one in all rows. A run of pad tokens is a grid of whole temporal patches, `time_step` apart,
        rounded down; what comes after it goes on from the highest position of all three rows, plus one. transformers
        itself (5.17 to 5.23) goes on after the larger *spatial* side, and cuts the seconds of a temporal patch to
        whole ones: with a long clip those differ from the positions in sampling.
        Source: get_rope_index of the reference implementations; vLLM's get_mrope_input_positions.
        """
        grids = iter(self._grids(prompt))
        pads = frozenset(self.vision_token_ids)
        start, parts = 0, []
        for is_vision, run in groupby(prompt.token_ids, key=pads.__contains__):
            count = len(list(run))
            if is_vision:
                step, *grid_thw = next(grids)
                # The place of each vision token in the grid, (3, M); then the steps of time become positions.
                part = np.indices(grid_thw).reshape(3, -1)
                part[0] = (part[0] * step).astype(np.int64)
            else:
                part = np.broadcast_to(np.arange(count), (3, count))
            parts.append(part + start)
            start = parts[-1].max() + 1
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def _grids(self, prompt: Prompt) -> Iterator[tuple[float, int, int, int]]:
        """Yield the `time_step` and the tokens along time, height and width of each run of pad tokens."""
        for clip in prompt.clips:
            _, h, w = self.tokens_thw(clip)
            is_pad = self.pad_id(clip).__eq__
            for is_run, run in groupby(self.clip_ids(clip), key=is_pad):
                if is_run:
                    yield self.time_step(clip), len(list(run)) // (h * w), h, w


ARTICLES: dict[Kind, str] = {"image": "a picture", "video": "a clip"}


def picture_of(clip: Clip) -> Image.Image:
    """Return a clip of a single picture as that picture."""
    return Image.fromarray(clip.frames_FHWC[0])
