"""Small real objects that tests share: the shipped policy, clips of noise, ragged groups.

All are of one family at a time: the shipped policy's, or another one inside `of_family`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from grpo.config.model import LoraConfig, LoraTargets
from grpo.groups import Group, Prompt, RewardTable, Rollout, Sample, ScoredGroup, main_index
from grpo.media.clip import Clip, ClipSource, Shown
from grpo.policy.adapters import is_adapter
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.policy.uploads import uploaded
from tests.support.clips import clip_of
from tests.support.tiny_models import write_model

ROOT = Path(__file__).parents[2]
BASE_POLICY = ROOT / "grpo" / "demo" / "base_policy"
LORA = LoraConfig(r=4, alpha=8, targets=LoraTargets(vision=["all-linear"], merger=["all-linear"]))
TAGS = ("think", "keyframes", "answer")

_current = ContextVar("_current", default="qwen2_5_vl")


@lru_cache
def _folder() -> TemporaryDirectory[str]:
    """The folder of the other families' models, which nobody makes who needs none: forks would leave it behind."""
    return TemporaryDirectory()


@contextmanager
def of_family(name: str) -> Iterator[None]:
    """Make everything here of a family, by its model_type; "qwen3_vl_untied" has a head of its own.

    With "_grown" behind it, it has the tokens of codecs that `tests/support/grown.py` describes.
    """
    token = _current.set(name)
    yield
    _current.reset(token)


def family() -> ModelFamily:
    return _family(_current.get())


@lru_cache
def _family(name: str) -> ModelFamily:
    if name == "qwen2_5_vl":
        return load_family(str(BASE_POLICY))
    path = Path(_folder().name) / name
    if name.endswith("_grown"):
        from tests.support import grown

        return load_family(str(grown.model(name.removesuffix("_grown"))))
    kind = name.removesuffix("_untied")
    write_model(path, kind, tokenizer_path=BASE_POLICY, tied=kind == name)
    return load_family(str(path))


def policy(*, seed: int | None = None, temperature: float = 1.0, **options: Any) -> Policy:
    """The family's policy in fp32; with a seed, moved far away from where it was trained, adapters included."""
    model = family().load_model(torch.float32)
    if seed is not None:
        stir(dict(model.named_parameters()), seed)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # adapters begin at random
        policy = Policy(model, family(), temperature=temperature, **options)
    if seed is not None:
        stir({n: w for n, w in policy.named_parameters() if is_adapter(n)}, seed)
    return policy


@torch.no_grad()
def stir(weights: Mapping[str, torch.Tensor], seed: int) -> None:
    """Add noise. Adapters of zeros need it: they hide what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight += 0.02 * torch.randn(weight.shape, generator=generator)


def clip(
    num_frames: int = 16, height_px: int = 56, width_px: int = 56, fps: float = 2.0, seed: int = 0
) -> Clip:
    """A clip of noise; its sides are for patches of 14 pixels, and grow with the family's."""
    patches = family().patches
    height_px, width_px = (side * patches.patch_px // 14 for side in (height_px, width_px))
    frames = np.random.default_rng(seed).integers(
        0, 256, (num_frames, height_px, width_px, 3), dtype=np.uint8
    )
    return clip_of(frames, fps=fps, patches=patches)


def pixels(*clips: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The vision tower's inputs of clips of one kind: patches and grids."""
    of = family()
    return of.pixels(clips, [of.patches_of(uploaded(clip, torch.device("cpu"))) for clip in clips])


def picture(height_px: int = 56, width_px: int = 84, seed: int = 1) -> Clip:
    """A single picture of noise, as it is read: its frame twice."""
    one = clip(1, height_px, width_px, seed=seed)
    return clip_of(
        np.repeat(one.frames_FHWC, 2, axis=0), patches=one.patches, is_picture=True, times_s=(0.0, 0.0)
    )


SEVERAL = {
    "an image and a video": ("image", "video"),
    "two videos": ("video", "video"),
    "a video, an image and a video": ("video", "image", "video"),
    "two images": ("image", "image"),
}
"""The kinds of several media in a question."""


def media(kinds: Sequence[str], *, short: bool = False) -> list[Clip]:
    """Media of these kinds, which all differ in grid and rate. short: videos are longer in space than in time,
    and their temporal patches last whole seconds."""
    videos = (clip(8, 84, 56, 2.0), clip(4, 56, 112, 1.0, seed=5))
    if short:
        videos = (clip(4, 84, 56, 2.0), clip(4, 56, 112, 2.0, seed=5))
    pictures = (picture(), picture(84, 56, seed=2))
    numbers = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
    return [
        (videos if kind == "video" else pictures)[number] for kind, number in zip(kinds, numbers, strict=True)
    ]


def source_like(clip: Clip, number: int) -> ClipSource:
    """A source of the kind that a clip is of."""
    return ClipSource(frames=(f"{number}.png",)) if clip.is_picture else ClipSource(video=f"{number}.mp4")


def media_prompt(
    kinds: Sequence[str], question: str = "Which object does the hand take?", *, short: bool = False
) -> Prompt:
    """A question about several media."""
    clips = media(kinds, short=short)
    sources = tuple(source_like(each, number) for number, each in enumerate(clips))
    of = sample("several", question=question, media=sources, clip_source=sources[main_index(sources)])
    return prompt(of, clips)


def sample(name: str = "s", **fields: object) -> Sample:
    defaults = {
        "id": name,
        "question": "Which object does the hand take?",
        "answer": "A",
        "task": "choice",
        "source": f"made-up:{name}",
        "options": ("red", "green", "blue", "white"),
    }
    return Sample(**(defaults | fields))  # pyright: ignore[reportArgumentType]


def prompt(of: Sample, shown: Shown) -> Prompt:
    return family().render(
        of, shown, template="{question} Answer.\n{options}", option="{letter} {text}", tags=TAGS
    )


def rollout(of: Prompt, token_ids: list[int], logprobs: list[float] | None = None, text: str = "") -> Rollout:
    return Rollout(
        sample=of.sample,
        clip=of.clip,
        media=of.media,
        tags=of.tags,
        text=text,
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs or [0.0] * len(token_ids)),
        stopped=True,
    )


def ragged_group(of: Prompt, lengths: list[int], *, seed: int) -> ScoredGroup:
    """Random completions of the given lengths with random advantages."""
    rng = np.random.default_rng(seed)
    rollouts = tuple(rollout(of, rng.integers(0, 400, length).tolist()) for length in lengths)
    advantages = tuple(rng.normal(size=len(lengths)).tolist())
    return ScoredGroup(
        group=Group(prompt=of, rollouts=rollouts), table=table(advantages), advantages=advantages
    )


def table(totals: tuple[float | None, ...]) -> RewardTable:
    """Totals without rewards behind them."""
    return RewardTable(columns={}, parts={}, totals=totals, failures=())


def ragged_groups() -> list[ScoredGroup]:
    """Groups that differ in everything: grid (one of 32 x 8 x 8 patches, long in time), question, number and
    length of completions, one without a clip, one with completions of a single token."""
    clips = [
        clip(),
        clip(64, 112, 112, 1.3),
        clip(4, 112, 140, 0.7),
        clip(seed=3),
        None,
        clip(8, 84, 56, 2.9),
    ]
    lengths = [[5, 12, 1, 9], [7, 3, 20], [1, 1, 4], [6, 6, 6, 6], [2, 9], [11, 30, 8, 1, 17]]
    return [
        ragged_group(
            prompt(sample(f"s{i}", question="Which object" + " red" * (i % 4)), clips[i]), lengths[i], seed=i
        )
        for i in range(len(clips))
    ]


def with_several_media() -> list[ScoredGroup]:
    """Ragged groups, of which one is about a video, an image and a video."""
    prompt = media_prompt(("video", "image", "video"), "First <video> then <image> and <video> what?")
    return [*ragged_groups(), ragged_group(prompt, [4, 9, 2], seed=6)]
