"""The losses of given completions, where a benchmark's official rule takes the likeliest of them.

The learner computes them: it has the weights, and log-probs are what it is made for, whatever engine samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from grpo.groups import Prompt
from grpo.learner.update import Learner
from grpo.packing import PackedRow, Segment, build_row
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.rollout import as_rollout


def losses_of_candidates(
    learner: Learner, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]]
) -> list[tuple[float, ...]]:
    """Return the losses of each prompt's candidates, as `mean_losses` does.

    All processes call it together, with any number of prompts, and weights may be split among them.
    """
    family = learner.policy.family
    rows = [candidate_row(*pair, family) for pair in zip(prompts, candidates, strict=True)]
    with untempered(learner.policy):
        logps = learner.logps_of_own(rows)
    return [mean_losses(row, logps_T) for row, logps_T in zip(rows, logps, strict=True)]


def candidate_row(prompt: Prompt, candidates: Sequence[str], family: ModelFamily) -> PackedRow:
    """Return a row of a prompt and its candidates; no token ends them, as in the official code."""
    tokenize = family.processor.tokenizer
    tokens = [tokenize(text, add_special_tokens=False)["input_ids"] for text in candidates]
    rollouts = [
        as_rollout(prompt, text=text, token_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
        for text, ids in zip(candidates, tokens, strict=True)
    ]
    segment = Segment(prompt=prompt, rollouts=tuple(rollouts), advantages=(0.0,) * len(rollouts))
    return build_row([segment], family)


def mean_losses(row: PackedRow, logps_T: Tensor) -> tuple[float, ...]:
    """Return the mean negative log-prob of the tokens of each completion in a row of one prompt."""
    (segment,) = row.segments
    parts = logps_T.float().split([len(rollout.token_ids) for rollout in segment.rollouts])
    return tuple(-float(part.mean()) for part in parts)


@contextmanager
def untempered(policy: Policy) -> Iterator[None]:
    """Have a policy give its log-probs at temperature 1, whatever it is sampled at."""
    head = policy.head
    sampled_at, head.temperature = head.temperature, 1.0
    try:
        yield
    finally:
        head.temperature = sampled_at
