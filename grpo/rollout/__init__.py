"""Rollout engines: prompts in, groups of completions out. `Engine` is all that the trainer knows of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from grpo.groups import Group, Prompt, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The settings of sampling. There is no top-p or top-k: the learner trains on the whole distribution."""

    group_size: int
    max_new_tokens: int
    temperature: float
    """The sampling temperature; 0 is greedy."""
    stop: tuple[str, ...] = ()
    """The texts that end a completion, beside the model's own tokens. They stay a part of it."""
    regex: str = ""
    """The regular expression that a whole completion matches; empty: none. Its log-probs are then of what the
    expression leaves at each token, which no learner knows: for answers alone."""


OnGroup = Callable[[Group], object]


class Engine(Protocol):
    """An engine that samples completions from the policy's weights."""

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        """Begin to make what sampling a step's groups needs of its prompts, in a thread, while weights change."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Sample one group per prompt; the same seed gives the same group, whatever else is in the batch.

        On a GPU that is so but for rounding, which may sample another token (docs/run_folder.md).
        A group that could not be sampled, since servers failed, is left out.

        on_group: called with each group as soon as it is complete, in any order, while others are still sampled.
        """
        ...

    def sync(self) -> None:
        """Load the policy's weights, and drop everything computed with the old ones; a sleeping engine wakes."""
        ...

    def sleep(self) -> None:
        """Free the engine's memory until the next sync."""
        ...

    def cancel(self) -> None:
        """Have `generate` raise, also where another thread is in it; only `close` comes after it."""
        ...

    def close(self) -> None: ...


def as_rollout(
    prompt: Prompt, *, text: str, token_ids: Sequence[int], logprobs: Sequence[float], stopped: bool
) -> Rollout:
    """Return a rollout of a prompt; raise ValueError if its log-probs are not finite, or not one per token."""
    if len(token_ids) != len(logprobs):
        raise ValueError(f"sample {prompt.sample.id}: {len(logprobs)} log-probs for {len(token_ids)} tokens")
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(
            f"sample {prompt.sample.id}: the engine's log-probs are not finite; are the weights?"
        )
    return Rollout(
        sample=prompt.sample,
        clip=prompt.clip,
        media=prompt.media,
        tags=prompt.tags,
        text=text,
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        stopped=stopped,
    )
