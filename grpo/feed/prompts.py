"""The feed: a step's samples (`mixture.py` chooses them) as prompts with their clips, which are decoded ahead."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo.feed.dynamic_sampling import DifficultyMemory
from grpo.feed.mixture import Part, step_samples
from grpo.groups import Batch, LostSample, Prompt, Sample
from grpo.media.clip import Clip, MediaError
from grpo.media.loader import ClipLoader

Render = Callable[[Sample, Sequence[Clip]], Prompt]

MAX_LEFT_OUT = 16
"""The most other questions that are tried for a place whose question is left out; then that one is asked after all."""


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
        memory: DifficultyMemory | None = None,
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
        self.memory = memory

    def batch(self, step: int) -> Batch:
        """Return this process's prompts of a step (the first is 1), and start to decode the clips of later steps."""
        ahead = [self._own(later) for later in range(step, step + self.prefetch_steps + 1)]
        own, coming = (
            ahead[0],
            [source for later in ahead for _, sample in later for source in sample.sources],
        )
        # The memory may have changed which questions come next since their clips were asked for.
        if self.memory is not None:
            self.loader.forget_all_but(coming)
        self.loader.prefetch(coming)
        seeds = [rollout_seed(self.seed, step, slot) for slot, _ in own]
        return make_batch(
            [sample for _, sample in own], seeds, self.loader, self.render, self.max_prompt_tokens
        )

    def others(self, step: int, attempt: int, places: Sequence[int]) -> Batch:
        """Return prompts of other questions for some places of a step's batch; each attempt, from 1 on, has others."""
        own = self._own(step, attempt)
        seeds = [rollout_seed(self.seed, step, own[place][0], attempt) for place in places]
        batch = make_batch(
            [own[place][1] for place in places], seeds, self.loader, self.render, self.max_prompt_tokens
        )
        return replace(batch, places=tuple(places[place] for place in batch.places))

    def _own(self, step: int, attempt: int = 0) -> list[tuple[int, Sample]]:
        slots = range(self.rank, self.prompts_per_step, self.num_processes)
        return [(slot, self._sample(step, attempt, slot)) for slot in slots]

    def _sample(self, step: int, attempt: int, slot: int) -> Sample:
        """Return the sample at a slot of a step; another one in the place of one that the memory leaves out.

        Other samples come from orders of their own, so that the epochs stay what they are, and from the same part of
        the mixture, so that the shares stay.
        """
        first = self._ordered(step, attempt)[slot]
        if self.memory is None:
            return first
        tries = (self._ordered(step, f"{attempt}/{number}")[slot] for number in range(MAX_LEFT_OUT))
        candidates = (each for each in (first, *tries) if not self.memory.leaves_out(each.id, step))
        return next(candidates, first)

    def _ordered(self, step: int, attempt: int | str) -> list[Sample]:
        order_seed = self.seed if attempt == 0 else rollout_seed(self.seed, "others", attempt)
        return step_samples(self.parts, self.prompts_per_step, step, self.seed, order_seed)


def make_batch(
    samples: Sequence[Sample],
    seeds: Sequence[int],
    loader: ClipLoader,
    render: Render,
    max_prompt_tokens: int,
) -> Batch:
    """Render samples' prompts. A sample that can't be decoded or rendered, or is too long, is lost, never replaced."""
    kept: list[tuple[int, Prompt, int]] = []
    lost: list[LostSample] = []
    for place, (sample, seed) in enumerate(zip(samples, seeds, strict=True)):
        try:
            prompt = render(sample, [loader.get(source) for source in sample.sources])
            if len(prompt.token_ids) > max_prompt_tokens:
                raise ValueError(
                    f"its prompt has {len(prompt.token_ids)} tokens, rollout.max_model_tokens leaves room for "
                    f"{max_prompt_tokens}"
                )
            kept.append((place, prompt, seed))
        except (MediaError, ValueError) as error:
            lost.append(LostSample(sample_id=sample.id, reason=f"{error} ({sample.source})"))
    return Batch(
        prompts=tuple(prompt for _, prompt, _ in kept),
        seeds=tuple(seed for _, _, seed in kept),
        places=tuple(place for place, _, _ in kept),
        lost=tuple(lost),
    )


def rollout_seed(*parts: int | str) -> int:
    """Return a seed that depends on all parts, with room above it for the seeds of a group's rollouts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
