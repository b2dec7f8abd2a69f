"""A step's samples (`mixture.py` says which) as prompts with their clips, decoded ahead."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo.groups import Prompt, Sample
from grpo.media.clip import Clip
from grpo.media.decode import MediaError
from grpo.media.loader import ClipLoader
from grpo.mixture import Part, step_samples

Render = Callable[[Sample, Clip | None], Prompt]


@dataclass(frozen=True, kw_only=True, slots=True)
class LostSample:
    """A sample that could not be used, and why, in one line."""

    sample_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts with the seeds of their rollouts, and what was lost on the way."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    lost: tuple[LostSample, ...]


class Feed:
    """The training samples of one process, step by step."""

    def __init__(
        self,
        parts: Sequence[Part],
        loader: ClipLoader,
        render: Render,
        *,
        seed: int,
        prompts_per_step: int,
        max_prompt_tokens: int,
        prefetch_steps: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        assert prompts_per_step % num_processes == 0
        self.parts = parts
        self.loader = loader
        self.render = render
        self.seed = seed
        self.prompts_per_step = prompts_per_step
        self.max_prompt_tokens = max_prompt_tokens
        self.prefetch_steps = prefetch_steps
        self.rank, self.num_processes = rank, num_processes

    def batch(self, step: int) -> Batch:
        """This process's prompts of a step (the first is 1); later steps' clips start decoding."""
        own = self._own(step)
        for later in range(step, step + self.prefetch_steps + 1):
            self.loader.prefetch([sample for _, sample in self._own(later)])
        seeds = [rollout_seed(self.seed, step, slot) for slot, _ in own]
        return make_batch(
            [sample for _, sample in own], seeds, self.loader, self.render, self.max_prompt_tokens
        )

    def _own(self, step: int) -> list[tuple[int, Sample]]:
        samples = step_samples(self.parts, self.prompts_per_step, step, self.seed)
        slots = range(self.rank, self.prompts_per_step, self.num_processes)
        return [(slot, samples[slot]) for slot in slots]


def make_batch(
    samples: Sequence[Sample],
    seeds: Sequence[int],
    loader: ClipLoader,
    render: Render,
    max_prompt_tokens: int,
) -> Batch:
    """Prompts of samples. One that can't be decoded, rendered or is too long is lost, never replaced."""
    kept: list[tuple[Prompt, int]] = []
    lost: list[LostSample] = []
    for sample, seed in zip(samples, seeds, strict=True):
        try:
            prompt = render(sample, loader.get(sample) if sample.clip_source is not None else None)
            if len(prompt.token_ids) > max_prompt_tokens:
                raise ValueError(
                    f"its prompt has {len(prompt.token_ids)} tokens, rollout.max_model_tokens leaves room for "
                    f"{max_prompt_tokens}"
                )
            kept.append((prompt, seed))
        except (MediaError, ValueError) as error:
            lost.append(LostSample(sample_id=sample.id, reason=f"{error} ({sample.source})"))
    return Batch(
        prompts=tuple(prompt for prompt, _ in kept), seeds=tuple(seed for _, seed in kept), lost=tuple(lost)
    )


def rollout_seed(*parts: int | str) -> int:
    """A seed that depends on all parts, with room for a group's members after it."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
