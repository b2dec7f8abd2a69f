"""Partial rollouts (`rollout.partial_tokens`): completions that a step does not wait for are finished in later steps.

A step samples at most so many tokens of each completion. What has not ended by then goes on in the next step, behind
its own tokens and by that step's weights; a group is trained on in the step in which the last of its completions ends.
Each token keeps its log-prob and the version of the weights that sampled it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from grpo.feed.prompts import rollout_seed
from grpo.groups import Batch, Group, LostSample, Prompt, Rollout
from grpo.rollout import Engine, OnGroup, Sampling
from grpo.rollout.ahead import of_version

Key = tuple[int, int | None]
"""A group's index, and its completion's; None for all completions of a group that begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A group some of whose completions have not ended."""

    group: Group
    seed: int
    step: int
    """The step whose question it is."""
    place: int
    """The place of the question among those of its step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the engine is asked for one completion that goes on, or for all of a group that begins."""

    key: Key
    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(kw_only=True)
class PartialRollouts:
    """The sampling of completions over several steps."""

    sampling: Sampling
    decode: Callable[[Sequence[int]], str]
    """Returns the text of a completion's tokens."""
    max_tokens: int
    """The most tokens of a completion that a step samples."""
    max_steps: int
    """The most steps that a group waits for; then it is finished at once."""
    begun: Sequence[Begun] = ()
    """The groups that wait, the oldest first."""
    num_finished_at_once: int = 0
    """The number of groups that had waited too long in the latest step."""

    def sample(
        self, engine: Engine, batch: Batch, step: int, version: int, *, on_group: OnGroup, on_first: OnGroup
    ) -> tuple[Batch, list[Group]]:
        """Go on with the groups that wait and begin those of a batch; return the complete ones, with their batch.

        on_group: told of groups that are complete at once. on_first: told of what there is of the batch's first group.
        """
        new = [
            Begun(group=Group(prompt=prompt, rollouts=()), seed=seed, step=step, place=place)
            for prompt, seed, place in zip(batch.prompts, batch.seeds, batch.places, strict=True)
        ]
        asked = [*self.begun, *new]
        self.num_finished_at_once = sum(self._is_late(each, step) for each in self.begun)

        first = batch.prompts[0] if batch.prompts else None

        def tell(group: Group) -> None:
            if group.prompt is first:
                on_first(group)
            if len(group.rollouts) == self.sampling.group_size and not any(map(self.is_open, group.rollouts)):
                on_group(group)

        requests = [each for index, one in enumerate(asked) for each in self._requests(index, one, step)]
        answers = answered(engine, requests, tell)
        after = [self._joined(index, each, answers, version) for index, each in enumerate(asked)]
        done = [each for each in after if each and not any(map(self.is_open, each.group.rollouts))]
        self.begun = [each for each in after if each and any(map(self.is_open, each.group.rollouts))]
        lost = [each for each, found in zip(asked, after, strict=True) if found is None]
        return _batch(batch, done, lost), [each.group for each in done]

    def is_open(self, rollout: Rollout) -> bool:
        """Return whether a completion has neither ended nor come to the limit of its tokens."""
        return not rollout.stopped and len(rollout.token_ids) < self.sampling.max_new_tokens

    def _is_late(self, begun: Begun, step: int) -> bool:
        return step - begun.step >= self.max_steps

    def _requests(self, index: int, begun: Begun, step: int) -> Iterator[Request]:
        prompt = begun.group.prompt
        if not begun.group.rollouts:
            sampling = replace(
                self.sampling, max_new_tokens=min(self.max_tokens, self.sampling.max_new_tokens)
            )
            yield Request(key=(index, None), prompt=prompt, sampling=sampling, seed=begun.seed)
        for number, rollout in enumerate(begun.group.rollouts):
            if self.is_open(rollout):
                left = self.sampling.max_new_tokens - len(rollout.token_ids)
                limit = left if self._is_late(begun, step) else min(self.max_tokens, left)
                yield Request(
                    key=(index, number),
                    prompt=replace(prompt, token_ids=prompt.token_ids + rollout.token_ids),
                    sampling=replace(self.sampling, group_size=1, max_new_tokens=limit),
                    seed=rollout_seed(begun.seed, "goes on", number, len(rollout.token_ids)),
                )

    def _joined(self, index: int, begun: Begun, answers: Mapping[Key, Group], version: int) -> Begun | None:
        """Return a group with what was sampled in a step; None if some of it was not."""
        rollouts = begun.group.rollouts
        try:
            if rollouts:
                joined = [
                    self._longer(rollout, answers[index, number].rollouts[0], version)
                    if self.is_open(rollout)
                    else rollout
                    for number, rollout in enumerate(rollouts)
                ]
            else:
                joined = of_version(answers[index, None], version).rollouts
        except KeyError:
            return None
        return replace(begun, group=replace(begun.group, rollouts=tuple(joined)))

    def _longer(self, rollout: Rollout, part: Rollout, version: int) -> Rollout:
        """Return a completion with more of its tokens."""
        token_ids = rollout.token_ids + part.token_ids
        return replace(
            rollout,
            text=self.decode(token_ids),
            token_ids=token_ids,
            logprobs=rollout.logprobs + part.logprobs,
            stopped=part.stopped,
            versions=rollout.versions + (version,) * len(part.token_ids),
        )


def answered(engine: Engine, requests: Sequence[Request], on_group: OnGroup) -> dict[Key, Group]:
    """Ask an engine, which any thread may call, for everything at once; what it could not sample is missing."""
    by_sampling: dict[Sampling, list[Request]] = defaultdict(list)
    for each in requests:
        by_sampling[each.sampling].append(each)
    with ThreadPoolExecutor(max(1, len(by_sampling))) as pool:
        calls = [
            pool.submit(
                engine.generate,
                [each.prompt for each in several],
                sampling,
                [each.seed for each in several],
                on_group,
            )
            for sampling, several in by_sampling.items()
        ]
        groups = {id(group.prompt): group for call in calls for group in call.result()}
    return {each.key: groups[id(each.prompt)] for each in requests if id(each.prompt) in groups}


def _batch(batch: Batch, done: Sequence[Begun], lost: Sequence[Begun]) -> Batch:
    """Return the batch of the groups that are complete, whatever step they are of."""
    return Batch(
        prompts=tuple(each.group.prompt for each in done),
        seeds=tuple(each.seed for each in done),
        places=tuple(each.place for each in done),
        lost=batch.lost
        + tuple(
            LostSample(sample_id=each.group.prompt.sample.id, reason="no server sampled its group")
            for each in lost
        ),
    )
