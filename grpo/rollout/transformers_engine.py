"""The transformers engine: sampling with the policy's own weights, for machines without vLLM and for debugging.

A second copy of the weights is needed only if the policy is sharded over processes, which then could not decode
independently. Prompts of equal length are decoded together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import DynamicCache

from grpo.groups import Group, Prompt, Rollout, clips_of
from grpo.packing import Segment, build_row
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.policy.weights import check_names
from grpo.rollout import OnGroup, Sampling, as_rollout
from grpo.rollout.concurrency import Concurrency


class TransformersEngine:
    """The engine that samples through transformers and its key-value cache."""

    def __init__(
        self,
        policy: Policy,
        *,
        own: Policy | None = None,
        dtype: torch.dtype = torch.float32,
        max_sequences: int = 256,
    ) -> None:
        """Make an engine with the learner's `dtype`; `own` is a copy to sample with, None for the policy itself."""
        self.policy = policy
        self.sampler = own or policy
        self.family, self.dtype = policy.family, dtype
        self.concurrency = Concurrency(max_sequences)

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        self.policy.expect_clips(clips_of(prompts), step)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Sample one group per prompt, as `Engine.generate` describes; raise ValueError for a `regex`."""
        if sampling.regex:
            raise ValueError("regex: the transformers engine has no structured output; vLLM has")
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            self.family.check_vision_tokens(prompt)
            by_length[len(prompt.token_ids)].append(index)
        groups: dict[int, Group] = {}
        # The longest first: if memory does not suffice, it is known at once.
        for length in sorted(by_length, reverse=True):
            left = by_length[length]
            while left:
                batch = left[: max(1, self.concurrency.most // sampling.group_size)]
                try:
                    made = self._generate([prompts[i] for i in batch], sampling, [seeds[i] for i in batch])
                except RuntimeError as error:
                    self.concurrency.halve(error, len(batch) * sampling.group_size)
                    continue
                left = left[len(batch) :]
                groups.update(zip(batch, made, strict=True))
                if on_group is not None:
                    for group in made:
                        on_group(group)
        return [groups[index] for index in range(len(prompts))]

    def sync(self) -> None:
        """Copy the policy's weights, unless the engine samples with the policy itself."""
        if self.sampler is self.policy:
            return
        own, given = dict(self.sampler.model.named_parameters()), set[str]()
        with torch.no_grad():
            for name, weight in self.policy.named_weights(self.dtype):
                given.add(name)
                if name in own:
                    own[name].copy_(weight)
        check_names(given - own.keys(), own.keys() - given)

    def sleep(self) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[Group]:
        lower = self.dtype != torch.float32
        # A group that is too large alone is sampled in parts.
        most = min(self.concurrency.most, sampling.group_size)
        was_training = self.sampler.training
        self.sampler.eval()
        try:
            with torch.no_grad(), torch.autocast(self.sampler.device.type, dtype=self.dtype, enabled=lower):
                parts = [
                    self._decode(prompts, sampling, seeds, range(sampling.group_size)[start : start + most])
                    for start in range(0, sampling.group_size, most)
                ]
        finally:
            self.sampler.train(was_training)
        return [
            Group(prompt=prompt, rollouts=tuple(chain.from_iterable(each)))
            for prompt, each in zip(prompts, zip(*parts, strict=True), strict=True)
        ]

    def _decode(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], members: range
    ) -> list[tuple[Rollout, ...]]:
        """Sample members of the groups of P prompts of equal length, as B sequences in one cache."""
        language_model = self.sampler.model.model.language_model
        cache = DynamicCache(config=language_model.config)
        hidden_BD, position = self._prefill(prompts, cache)
        # Each prompt is computed once; its state, (P, D), and its cache are repeated for its completions.
        hidden_BD = hidden_BD.repeat_interleave(len(members), dim=0)
        position_B = position.repeat_interleave(len(members))
        cache.batch_repeat_interleave(len(members))
        last_P = torch.tensor([prompt.token_ids[-1] for prompt in prompts], device=hidden_BD.device)
        tokens_B = last_P.repeat_interleave(len(members))
        sampler = _Sampler(sampling, seeds, members)
        ends = Ends(self.family, sampling.stop, len(hidden_BD))
        columns: list[tuple[Tensor, Tensor]] = []
        for _ in range(sampling.max_new_tokens):
            tokens_B, logps_B = sampler.sample(self.sampler.logits(hidden_BD, tokens_B))
            columns.append((tokens_B, logps_B))
            # Completions that have ended are sampled on until all have; `_rollouts` cuts the rest off.
            if ends.all_after(tokens_B.tolist()):
                break
            hidden_BD = language_model(
                inputs_embeds=self.sampler.model.get_input_embeddings()(tokens_B)[:, None],
                position_ids=position_B[None, :, None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            position_B = position_B + 1
        tokens_BL, logps_BL = (torch.stack(column, dim=1).tolist() for column in zip(*columns, strict=True))
        return self._rollouts(prompts, tokens_BL, logps_BL, ends.lengths)

    def _prefill(self, prompts: Sequence[Prompt], cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """Compute the last hidden state (P, D) and next position (P,) of each prompt, and fill the cache."""
        segments = [Segment(prompt=prompt, rollouts=(), advantages=()) for prompt in prompts]
        row = build_row(segments, self.family).to(self.sampler.device)
        count = len(prompts)
        positions_3PS = row.positions_3N.view(3, count, -1)
        hidden_PSD = self.sampler.model.model.language_model(
            **self.sampler.inputs(row, num_texts=count),
            position_ids=positions_3PS,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_PSD[:, -1], positions_3PS.amax(dim=(0, 2)) + 1

    def _rollouts(
        self,
        prompts: Sequence[Prompt],
        tokens_BL: list[list[int]],
        logps_BL: list[list[float]],
        lengths: Sequence[int | None],
    ) -> list[tuple[Rollout, ...]]:
        per_prompt = len(tokens_BL) // len(prompts)
        rollouts = []
        for index, (tokens, logps, end) in enumerate(zip(tokens_BL, logps_BL, lengths, strict=True)):
            rollouts.append(
                as_rollout(
                    prompts[index // per_prompt],
                    text=self.family.decode(tokens[:end]),
                    token_ids=tokens[:end],
                    logprobs=logps[:end],
                    stopped=end is not None,
                )
            )
        return [tuple(rollouts[start : start + per_prompt]) for start in range(0, len(rollouts), per_prompt)]


class Ends:
    """The ends of completions that are sampled together: each at a token that ends a turn, or at a text."""

    def __init__(self, family: ModelFamily, stop: Sequence[str], num_completions: int) -> None:
        self.family, self.stop = family, stop
        # A token has a byte at least.
        self.most_tokens = max((len(text.encode()) for text in stop), default=0)
        self.tokens: list[list[int]] = [[] for _ in range(num_completions)]
        self.lengths: list[int | None] = [None] * num_completions
        """The number of each completion's tokens; None for one that has not ended."""

    def all_after(self, tokens_B: Sequence[int]) -> bool:
        """Take the next token of each completion, and return whether all have ended."""
        for index, token in enumerate(tokens_B):
            own = self.tokens[index]
            own.append(token)
            if self.lengths[index] is None and (token in self.family.eos_ids or self._has_stop(own)):
                self.lengths[index] = len(own)
        return None not in self.lengths

    def _has_stop(self, tokens: list[int]) -> bool:
        if not self.stop:
            return False
        text = self.family.decode(tokens[-self.most_tokens :])
        return any(each in text for each in self.stop)


class _Sampler:
    """A sampler of tokens for members of each group, with a random generator for every prompt."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], members: range) -> None:
        self.greedy = sampling.temperature == 0
        self.group_size, self.members = sampling.group_size, slice(members.start, members.stop)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def sample(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return a token for each sequence, and its log-prob under the sampled distribution."""
        logps_BV = torch.log_softmax(logits_BV, dim=-1)
        tokens_B = logps_BV.argmax(-1) if self.greedy else self._draw(logps_BV)
        return tokens_B, logps_BV.gather(-1, tokens_B[:, None])[:, 0]

    def _draw(self, logps_BV: Tensor) -> Tensor:
        # All of a group's numbers are drawn, so that a member's do not depend on which others there are.
        uniform = [torch.rand(self.group_size, 1, generator=generator) for generator in self.generators]
        uniform_B1 = torch.cat([each[self.members] for each in uniform]).to(logps_BV.device)
        # Inverse transform sampling: the first token whose cumulative probability is above the uniform number. It has
        # a probability above 0 also where the number is 0.
        cumulative_BV = logps_BV.double().exp().cumsum(-1)
        tokens_B1 = torch.searchsorted(cumulative_BV, uniform_B1.double() * cumulative_BV[:, -1:], right=True)
        # None is above it where the logits are NaN.
        return tokens_B1[:, 0].clamp(max=logps_BV.shape[-1] - 1)
