"""The proof that an engine samples from the policy's weights: a fixed question, on whose answers both must agree.

The engine answers it after a sync, and the policy computes the log-probs of these answers. What the engine still has of
older weights, in a prefix or a clip's features, shows up too, since question and clip are always the same. A model
with tokens of codecs is asked for codes too, whose rows a question in words tells nothing of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from grpo.codec.vocabulary import CodecTokens, Vocabulary
from grpo.groups import Group, Prompt, Sample
from grpo.media.clip import Clip, ClipFacts
from grpo.packing import Segment, build_row
from grpo.policy.adapters import adapters_off
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.rollout import Sampling

ALWAYS_FIRST = 3
"""The number of first syncs that are all proven."""

NUM_COMPLETIONS, NUM_TOKENS = 4, 8
"""The answers to the question: some tokens, so that the mean of their differences has little noise."""

NUM_STEPS = 3
"""The code steps of each codec that a question for codes has: of the first, a middle and the last code."""

SEED = 20

Ask = Callable[[Sequence[Prompt], Sampling, Sequence[int]], list[Group]]
"""An engine's way of sampling, as `Engine.generate`."""


def make_prompt(family: ModelFamily) -> Prompt:
    """Return the fixed question, about a clip of noise of two temporal patches."""
    shape = family.patches
    side_px = 2 * shape.token_px
    frames_FHWC = np.random.default_rng(SEED).integers(
        0, 256, (2 * shape.temporal_frames, side_px, side_px, 3), dtype=np.uint8
    )
    facts = ClipFacts.at_fps(frames_FHWC.shape, 2.0, path="proof of sync", patches=shape)
    sample = Sample(
        id="proof of sync", question="What happens, and when?", answer="", task="text", source="proof of sync"
    )
    return family.render(sample, Clip(facts, frames_FHWC), template="{question}", option="", tags=())


def code_prompts(prompt: Prompt, vocabulary: Vocabulary) -> list[Prompt]:
    """Return a question with codes of all codecs and levels behind it, once for each codec, in whose span it ends.

    Outside of spans all codes have probability 0, whatever their rows are.
    """
    spans = [token for codec in vocabulary.codecs for token in _span(codec)]
    return [
        replace(prompt, token_ids=(*prompt.token_ids, *spans, codec.open_id)) for codec in vocabulary.codecs
    ]


def _span(codec: CodecTokens) -> list[int]:
    last = codec.codebook_size - 1
    codes = [level[step * last // (NUM_STEPS - 1)] for step in range(NUM_STEPS) for level in codec.levels]
    return [codec.open_id, *codes, codec.close_id]


def is_due(number: int, every: int) -> bool:
    """Return whether engine and policy are compared: the first times, and then every so many; 0: never."""
    return every > 0 and (number <= ALWAYS_FIRST or number % every == 0)


@dataclass(kw_only=True)
class SyncProof:
    """The proof after a sync, on the first ones and then on every so many."""

    policy: Policy
    prompt: Prompt
    dtype: torch.dtype
    """The precision of the learner's passes."""
    max_gap: float
    """The largest mean difference of the log-probs."""
    every: int
    """The syncs from one proof to the next; 0: there is none."""
    num_syncs: int = 0

    def after_sync(
        self, ask: Ask, differing: Callable[[], list[str] | None], ask_without: Ask | None = None
    ) -> None:
        """Count a sync, and raise RuntimeError if it is to be proven and engine and policy don't agree.

        differing: returns the names of weights that differ, None if that can't be told; all processes call it
        together, and only after a failure.
        ask_without: samples without the policy's adapters, where the engine can.
        """
        self.num_syncs += 1
        if not is_due(self.num_syncs, self.every):
            return
        vocabulary = self.policy.family.vocabulary
        for_codes = [] if vocabulary is None else code_prompts(self.prompt, vocabulary)
        groups = [self._answer(ask, prompt) for prompt in (self.prompt, *for_codes)]
        logps = [logps_of(self.policy, group, self.dtype) for group in groups]
        gaps = [
            float((logps_T - _sampled(group)).abs().mean())
            for group, logps_T in zip(groups, logps, strict=True)
        ]
        # NaN is no agreement.
        if not (worst := max(gather_object(gaps), key=_badness)) <= self.max_gap:
            raise RuntimeError(self._disagreement(worst, differing()))
        if ask_without is not None:
            self._prove_adapters(groups[0], logps[0], self._answer(ask_without, self.prompt))

    def _prove_adapters(self, group: Group, logps_T: Tensor, without: Group) -> None:
        """Raise RuntimeError if adapters change the policy's numbers, and not the engine's."""
        with adapters_off(self.policy.model):
            change = float((logps_of(self.policy, group, self.dtype) - logps_T).abs().mean())
        is_unchanged = without == group
        if any(gather_object([is_unchanged and change > self.max_gap / 10])):
            raise RuntimeError(
                f"the engine ignores the policy's adapters: they change the policy's log-probs by {change:.2g} on "
                "average, and not the engine's"
            )

    def _answer(self, ask: Ask, prompt: Prompt) -> Group:
        codecs = () if (vocabulary := self.policy.family.vocabulary) is None else vocabulary.codecs
        # A whole code step, and what comes behind it.
        num_tokens = max([NUM_TOKENS, *(len(codec.levels) + 1 for codec in codecs)])
        temperature = self.policy.head.temperature
        sampling = Sampling(group_size=NUM_COMPLETIONS, max_new_tokens=num_tokens, temperature=temperature)
        (group,) = ask([prompt], sampling, [SEED])
        return group

    def _disagreement(self, gap: float, names: list[str] | None) -> str:
        where = (
            "which weights differ can't be told"
            if names is None
            else f"it has other values of {len(names)} weights: {', '.join(names[:8])}"
            if names
            else "all of its weights are the policy's, so something computed with older ones is still in use, or it "
            "computes otherwise"
        )
        return (
            f"after sync {self.num_syncs} the engine's log-probs differ from the policy's by {gap:.2g} on average, "
            f"more than {self.max_gap:g}: {where}"
        )


@torch.no_grad()
def logps_of(policy: Policy, group: Group, dtype: torch.dtype) -> Tensor:
    """Return a policy's log-probs of a group's tokens, (T,), with passes in a precision.

    Where weights are split over processes, all must call it together.
    """
    segment = Segment(prompt=group.prompt, rollouts=group.rollouts, advantages=(0.0,) * len(group.rollouts))
    row = build_row([segment], policy.family).to(policy.device)
    # The tower's features are computed anew, as the engine does.
    kept, policy.feature_cache = policy.feature_cache, None
    try:
        with torch.autocast(policy.device.type, dtype, enabled=dtype != torch.float32):
            return policy(row).logps_T.cpu()
    finally:
        policy.feature_cache = kept


def gap_of(policy: Policy, group: Group, dtype: torch.dtype) -> float:
    """Return the mean difference of a policy's log-probs of a group's tokens to the engine's; see `logps_of`."""
    return float((logps_of(policy, group, dtype) - _sampled(group)).abs().mean())


def _sampled(group: Group) -> Tensor:
    return torch.tensor([value for rollout in group.rollouts for value in rollout.logprobs])


def _badness(gap: float) -> float:
    return float("inf") if gap != gap else gap
