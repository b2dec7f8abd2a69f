"""Given completions: the texts of a record's column `target` in the place of rollouts (`loss.type=nll`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Never

from grpo.groups import Group, Prompt, RewardTable, Sample, ScoredGroup
from grpo.policy.families import ModelFamily
from grpo.rollout import Engine, OnGroup, Sampling, as_rollout
from rewards.scoring.specs import Reward

TARGET = "target"


def targets_of(sample: Sample) -> tuple[str, ...]:
    """Return a sample's targets; ValueError names the sample without any, and one that is no text or an empty one."""
    given = sample.columns.get(TARGET)
    texts = [given] if isinstance(given, str) else given
    named = f"{sample.source}: sample {sample.id}"
    if not texts:
        raise ValueError(f"{named}: no {TARGET!r}: loss.type=nll trains on the texts that records give")
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{named}: {TARGET!r} must be a text or a list of texts")
    if not all(each.strip() for each in texts):
        raise ValueError(f"{named}: an empty {TARGET!r}")
    return tuple(texts)


def completions_of(
    sample: Sample, family: ModelFamily, *, wording: str, max_new_tokens: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the texts that a sample's targets make, with their tokens, which end as a sampled completion does.

    wording: the text, with {target} where the target stands. ValueError names the sample of a completion that is longer
    than a sampled one may be: none is ever cut.
    """
    found = []
    for target in targets_of(sample):
        try:
            text = family.stream_codes.in_text(wording.format(target=target), sample)
            token_ids = family.completion_ids(text)
        except ValueError as error:
            raise ValueError(f"{sample.source}: sample {sample.id}: {error}") from None
        if len(token_ids) > max_new_tokens:
            raise ValueError(
                f"{sample.source}: sample {sample.id}: its {TARGET!r} has {len(token_ids)} tokens, and "
                f"rollout.max_new_tokens is {max_new_tokens}"
            )
        found.append((text, token_ids))
    return found


def check_given(
    samples: Iterable[Sample],
    family: ModelFamily,
    rewards: Iterable[Reward],
    *,
    wording: str,
    max_new_tokens: int,
    num_workers: int = 1,
) -> None:
    """Raise ValueError for a sample without completions that fit, and for a reward that needs sampled ones."""
    for reward in rewards:
        if reward.counterfactuals:
            raise ValueError(
                f"rewards.{reward.name} compares with sampled completions, and loss.type=nll samples none"
            )
    make = partial(completions_of, family=family, wording=wording, max_new_tokens=max_new_tokens)
    with ThreadPoolExecutor(num_workers) as pool:
        # What raises first cancels the rest.
        for _ in pool.map(make, samples):
            pass


@dataclass(frozen=True, kw_only=True)
class GivenCompletions:
    """An engine that gives what records give; weights go to the one that answers held-out questions."""

    family: ModelFamily
    wording: str
    """The completion's text, with {target} where the target stands."""
    engine: Engine

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Return each prompt with its targets as a group, as an engine returns sampled ones."""
        groups = []
        for prompt in prompts:
            given = completions_of(
                prompt.sample, self.family, wording=self.wording, max_new_tokens=sampling.max_new_tokens
            )
            rollouts = tuple(
                # No engine has sampled these tokens, and nothing reads their log-probs.
                as_rollout(prompt, text=text, token_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
                for text, ids in given
            )
            groups.append(Group(prompt=prompt, rollouts=rollouts))
            if on_group is not None:
                on_group(groups[-1])
        return groups

    def sync(self) -> None:
        self.engine.sync()

    def sleep(self) -> None:
        self.engine.sleep()

    def cancel(self) -> None:
        self.engine.cancel()

    def close(self) -> None:
        self.engine.close()


def follow(
    groups: Sequence[Group],
    tables: Sequence[RewardTable],
    *,
    gather: Callable[[list[float | None]], list[float | None]] = list,
) -> list[ScoredGroup]:
    """Return the groups with an advantage of 1 for each completion, whatever its rewards: all are made more likely."""
    return [
        ScoredGroup(group=group, table=table, advantages=(1.0,) * len(group.rollouts))
        for group, table in zip(groups, tables, strict=True)
    ]


class NoEngine:
    """The engine of a run that samples nothing (`rollout.engine=none`)."""

    def prepare(self, *_: object, **__: object) -> None: ...

    def generate(self, *_: object, **__: object) -> Never:
        raise AssertionError("rollout.engine=none samples nothing")

    def sync(self) -> None: ...

    def sleep(self) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...
