"""The rules of code tokens inside vLLM, which loads this class by its name (`vllm_settings.CODE_RULES`).

Log-probs are of what is left (`logprobs_mode=processed_logprobs`). vLLM refuses to decode speculatively beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from grpo.codec.allowed_tokens import AllowedTokens
from grpo.codec.vocabulary import read_vocabulary
from grpo.policy.model_folder import find_model_folder


class CodeRules(LogitsProcessor, LogitsProcessorV2):
    """A processor of logits for both of vLLM's model runners, which differ in how they tell the last token.

    The second one, which vLLM takes on most GPUs, gives it; the first one gives lists that grow with the tokens.
    """

    def __init__(self, vllm_config: Any, *place: Any) -> None:
        vocabulary = read_vocabulary(find_model_folder(vllm_config.model_config.model))
        if vocabulary is None:
            raise ValueError(
                f"{vllm_config.model_config.model} has no codes: {type(self).__name__} is not for it"
            )
        self.allowed = AllowedTokens(vocabulary)
        self.tokens: dict[int, tuple[list[int], list[int]]] = {}
        """The tokens of each row of the batch: the prompt's, and those that were sampled."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.tokens, batch_update, lambda _, prompt, sampled: (prompt or [], sampled))

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Forbid what breaks the rules in logits (rows, V), in place. ctx: the second runner's batch."""
        if ctx is not None:
            return self.allowed.forbid_(logits, ctx.input_ids.long())
        last = [
            (sampled or prompt)[-1] for prompt, sampled in map(self.tokens.__getitem__, range(len(logits)))
        ]
        return self.allowed.forbid_(logits, torch.tensor(last, device=logits.device))
