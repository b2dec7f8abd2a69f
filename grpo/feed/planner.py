"""The planner of prompts: their numbers of tokens before a clip is decoded, by the same arithmetic as decoding.

A run refuses prompts that can't fit at its start, with the sample's name and the key to change; nothing is ever cut.
Most prompts fit whatever their clip is like, which is known from the settings alone; only for the others is the
clip's file opened. `egogrpo doctor` opens all of them, and reports how tokens are distributed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from tqdm import tqdm

from grpo.groups import Sample
from grpo.media.clip import MediaError
from grpo.media.reading import describe, plan_source
from grpo.media.sampling import (
    ClipPlan,
    MediaSettings,
    TooManyTokens,
    most_tokens,
    most_vision_tokens,
)
from grpo.policy.families import ModelFamily

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPlan:
    """The size of a prompt before its clip is decoded."""

    clips: tuple[ClipPlan, ...]
    """The plans of all that is shown, in order."""
    num_text_tokens: int
    """The tokens beside the pads; of a clip's text, such as the time of each patch, the most that there can be."""
    num_vision_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_text_tokens + self.num_vision_tokens


@dataclass(frozen=True, kw_only=True)
class Planner:
    """The planner of a run's prompts."""

    family: ModelFamily
    settings: MediaSettings
    count_text: Callable[[Sample], int]
    """Returns the number of tokens of a sample's prompt beside its clip's."""
    max_prompt_tokens: int

    def plan(self, sample: Sample) -> PromptPlan:
        """Plan a sample's prompt from the headers of its clips' files; raise MediaError if a clip can't be used."""
        self.family.stream_codes.check(sample)
        patches, sources = self.family.patches, sample.sources
        clips = tuple(plan_source(each, settings=self.settings, patches=patches) for each in sources)
        clip_text = sum(
            self.family.most_clip_text_tokens(clip.num_frames)
            for clip, source in zip(clips, sources, strict=True)
            if not source.is_picture
        )
        return PromptPlan(
            clips=clips,
            num_text_tokens=self.count_text(sample) + clip_text,
            num_vision_tokens=sum(clip.num_tokens(patches) for clip in clips),
        )

    def refusals(self, samples: Sequence[Sample], *, num_workers: int, is_shown: bool = False) -> list[str]:
        """Return a line for each prompt that can't fit, or whose streams can't be used, with the sample.

        Clips that can't be read are left out here: they are lost when they are decoded.
        """
        with ThreadPoolExecutor(num_workers) as pool:
            found = pool.map(self._refusal, samples)
            bar = tqdm(found, "counting tokens", len(samples), leave=False, delay=2.0, disable=not is_shown)
            return [reason for reason in bar if reason is not None]

    def refusal(self, sample: Sample, plan: PromptPlan) -> str | None:
        """Return why a prompt can't fit, without the file and line of its record; None if it fits."""
        if plan.num_tokens <= self.max_prompt_tokens:
            return None
        room = self.max_prompt_tokens - plan.num_text_tokens
        # The limit is each clip's.
        share = room // max(1, len(plan.clips))
        smaller = f"lower media.max_tokens to {share} or " if plan.clips and share > 0 else ""
        return (
            f"sample {sample.id}: its prompt has {plan.num_tokens} tokens, "
            f"rollout.max_model_tokens leaves room for {self.max_prompt_tokens}: {smaller}raise that by "
            f"{plan.num_tokens - self.max_prompt_tokens}"
        )

    def _refusal(self, sample: Sample) -> str | None:
        try:
            self.family.stream_codes.check(sample)
            if self._surely_fits(sample):
                return None
        except MediaError as error:
            logger.warning("%s: sample %s: %s", sample.source, sample.id, error)
            return None
        except ValueError as error:
            # The prompt's text is wrong, or a stream.
            return f"{sample.source}: sample {sample.id}: {error}"
        try:
            reason = self.refusal(sample, self.plan(sample))
            return None if reason is None else f"{sample.source}: {reason}"
        except MediaError as error:
            is_ours = isinstance(error.__cause__, TooManyTokens)
            return f"{sample.source}: sample {sample.id}: {error}" if is_ours else None
        except Exception as error:
            # The file is wrong, and the clip will be lost: the text was counted above.
            logger.warning("%s: sample %s: %s", sample.source, sample.id, describe(error))
            return None

    def _surely_fits(self, sample: Sample) -> bool:
        # A wrong text raises here, before a file is opened.
        num_text, num_clips = self.count_text(sample), len(sample.sources)
        if not num_clips:
            return num_text <= self.max_prompt_tokens
        most = num_text + num_clips * self._most_clip_tokens
        return self._any_clip_can_be_shown and most <= self.max_prompt_tokens

    @cached_property
    def _any_clip_can_be_shown(self) -> bool:
        limit, step = self.settings.max_tokens, self.family.patches.temporal_frames
        fewest = math.ceil(self.settings.min_frames / step) * step
        return limit is None or most_tokens(fewest, self.settings, self.family.patches) <= limit

    @cached_property
    def _most_clip_tokens(self) -> int:
        text = self.family.most_clip_text_tokens(self.settings.max_frames)
        return text + most_vision_tokens(self.settings, self.family.patches)
