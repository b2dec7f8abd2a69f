"""The demo's base policy while it is made, as the phases of its making use it: its clips, and its logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from grpo.demo.base_policy_model import build_policy
from grpo.demo.base_policy_texts import Exchange, names
from grpo.demo.clips import Scene, clip_of, scene_at
from grpo.groups import Prompt, Sample
from grpo.media.clip import Clip
from grpo.media.sampling import PatchShape
from grpo.packing import PackedRow, Segment, build_row
from grpo.rollout import as_rollout

NUM_PRETRAIN_CLIPS, NUM_PROBE_CLIPS = 6000, 192

Texts = Sequence[tuple[Clip | None, Sequence[Exchange]]]
"""Clips, and what is asked and replied about each; a request that follows its like is read once for both."""


class Maker:
    """The policy under way, and its clips."""

    def __init__(self, family: str, *, seed: int, clips_per_step: int = 32) -> None:
        """Begin anew. clips_per_step: those of a batch, beside half as many more lists of options in its place."""
        self.clips_per_step, self.lists_per_step = clips_per_step, clips_per_step * 3 // 2
        self.policy = build_policy(family, seed=seed).train()
        self.rng = random.Random(seed)
        self.clips = [scene_at("pretrain", i, seed=seed) for i in range(NUM_PRETRAIN_CLIPS)]
        self.probe = [scene_at("probe", i, seed=seed) for i in range(NUM_PROBE_CLIPS)]

    def sample_clips(self) -> list[Scene]:
        return self.rng.choices(self.clips, k=self.clips_per_step)

    def clip(self, scene: Scene) -> Clip:
        return _clip(scene, self.policy.family.patches)

    def logits(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and targets (T,) of all reply tokens; texts of one shape keep their order."""
        row = self._packed(texts)
        return self.policy.logits(self.policy.hidden(row), row.input_ids_N[row.source_T]), row.target_T

    def named(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Logits (M, V) and targets (M,) of what each vision token is a name of, by the words' embeddings."""
        policy, clips = self.policy, [self.clip(scene) for scene in scenes]
        patches = [policy.uploads.get(clip, policy.device) for clip in clips]
        features = policy.vision_features(*policy.family.pixels(clips, patches))
        embeds_VD = self.policy.model.get_input_embeddings().weight.detach()
        features_MD = torch.cat(features)[:, : embeds_VD.shape[1]]
        target = [self.token_ids(name)[0] for scene in scenes for name in names(scene)]
        # A feature as long as an embedding then has a logit of 6 for its own word.
        scale = 6.0 / embeds_VD.square().sum(-1).mean()
        return features_MD @ embeds_VD.T * scale, torch.tensor(target)

    def prompt(self, request: str, clip: Clip | None) -> Prompt:
        sample = Sample(id="", question=request, answer="", task="text", source="")
        return self.policy.family.render(sample, clip, template="{question}", option="", tags=())

    def token_ids(self, text: str) -> list[int]:
        return self.policy.family.processor.tokenizer.encode(text, add_special_tokens=False)

    def save(self, folder: str) -> None:
        weights = dict(self.policy.named_weights())
        self.policy.family.save_model(Path(folder), weights, max_shard_size="50GB")

    def _packed(self, texts: Texts) -> PackedRow:
        segments = [
            self._segment(self.prompt(request, clip), [exchange.reply for exchange in same])
            for clip, exchanges in texts
            for request, same in groupby(exchanges, key=lambda exchange: exchange.request)
        ]
        return build_row(segments, self.policy.family)

    def _segment(self, prompt: Prompt, replies: Sequence[str]) -> Segment:
        """A prompt with the replies as its completions. Their log-probs and advantages are not used here."""
        token_ids = [[*self.token_ids(reply), self.policy.family.eos_ids[0]] for reply in replies]
        rollouts = tuple(
            as_rollout(prompt, text=text, token_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
            for text, ids in zip(replies, token_ids, strict=True)
        )
        return Segment(prompt=prompt, rollouts=rollouts, advantages=(0.0,) * len(rollouts))


@cache
def _clip(scene: Scene, patches: PatchShape) -> Clip:
    """A scene's clip, whose frames are resized once."""
    return clip_of(scene.frames_FHWC, patches)
