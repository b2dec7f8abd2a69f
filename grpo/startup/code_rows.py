"""The rows of code tokens in a run that does not train them."""

from __future__ import annotations

from collections.abc import Callable

from grpo.config.model import ModelConfig
from grpo.policy.families import ModelFamily


def say_untrained_rows(model: ModelConfig, family: ModelFamily, say: Callable[[str], object]) -> None:
    """Say if a model has code tokens, and the run keeps the rows that it has for them."""
    if family.vocabulary is None or not (model.lora.is_on or "language" in model.frozen):
        return
    why = "model.lora" if model.lora.is_on else "model.freeze"
    say(
        f"note: {why} keeps the rows of code tokens in embedding and head as they are. In a model fresh from egogrpo "
        "codec grow they have random directions, which mean nothing yet: train with model.new_rows_only=true first, "
        "and from its final/ with these settings (docs/codecs.md)"
    )
