"""The rules of `vocabulary.py` as tensors: which tokens may follow each of many, for engines and the learner alike."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo.codec.vocabulary import OUTSIDE, Vocabulary

FORBIDDEN_LOGIT = -1e9
"""The logit of a token that may not follow. Its probability is exactly 0, and unlike minus infinity it leaves the
entropy and its gradient finite: 0 times it is 0."""


class AllowedTokens:
    """The tokens that may follow each token, on whatever device they are asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tables: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}
        """The tables by device and V: the state after each token, (V,), and what each state forbids, (states, V)."""

    def forbid(self, logits_TV: Tensor, previous_T: Tensor) -> Tensor:
        """Return logits in which no token that breaks the rules can be sampled.

        previous_T: the token in front of each one that the logits are of.
        """
        return logits_TV.masked_fill(self._forbidden(logits_TV, previous_T), FORBIDDEN_LOGIT)

    def forbid_(self, logits_TV: Tensor, previous_T: Tensor) -> Tensor:
        """Do what `forbid` does in place, and return the same logits: for a caller that needs them no more."""
        return logits_TV.masked_fill_(self._forbidden(logits_TV, previous_T), FORBIDDEN_LOGIT)

    def _forbidden(self, logits_TV: Tensor, previous_T: Tensor) -> Tensor:
        state_V, forbidden_SV = self._on(logits_TV.device, logits_TV.shape[-1])
        return forbidden_SV[state_V[previous_T]]

    def _on(self, device: torch.device, num_tokens: int) -> tuple[Tensor, Tensor]:
        key = (device, num_tokens)
        if key not in self.tables:
            self.tables[key] = self._made(device, num_tokens)
        return self.tables[key]

    def _made(self, device: torch.device, num_tokens: int) -> tuple[Tensor, Tensor]:
        rules = self.vocabulary
        state_V = torch.full((num_tokens,), OUTSIDE, device=device)
        forbidden_SV = torch.ones(1 + len(rules.allowed), num_tokens, dtype=torch.bool, device=device)
        for tokens, state in rules.states.items():
            state_V[tokens.start : tokens.stop] = state
        for state, allowed in rules.allowed.items():
            for tokens in allowed:
                forbidden_SV[state, tokens.start : tokens.stop] = False
        forbidden_SV[OUTSIDE] = False
        for tokens in rules.only_inside:
            forbidden_SV[OUTSIDE, tokens.start : tokens.stop] = True
        return state_V, forbidden_SV
