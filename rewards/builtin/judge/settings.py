"""The settings of a judge, as `rewards.NAME.args` of a config gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABOVE_0 = ("max_concurrent", "request_timeout_s", "max_chars", "requests_per_minute", "max_tokens")
FROM_0 = ("retries", "backoff_s", "temperature", "max_requests", "max_tokens_total")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A judge's endpoint, model, prompt and limits. Making one raises ValueError for a number out of bounds."""

    base_url: str
    """The endpoint's address up to `/v1`."""
    model: str
    """The name that the endpoint knows the model by."""
    prompt: str = "openeqa"
    """A built-in prompt's name, or a file."""
    api_key_env: str | None = None
    """The environment variable that holds the key. None: the endpoint asks for none."""
    temperature: float | None = None
    """None: what the prompt states (openeqa: 0.2, with seed 1234), else 0."""
    max_tokens: int | None = None
    """The limit of a reply; one that is cut off there is not read, and a model that thinks first needs more. None: what
    the prompt states, else 32."""
    max_concurrent: int = 16
    requests_per_minute: float | None = None
    request_timeout_s: float = 20.0
    retries: int = 4
    """The retries after failed connections, timeouts, 429 and 5xx. A reply that is no chat completion has one: it is
    billed."""
    backoff_s: float = 0.5
    """The wait before the first retry, doubled before each further one; or as long as the endpoint asks."""
    max_requests: int | None = None
    """The budget: what would go beyond it fails. 0: the cache alone."""
    max_tokens_total: int | None = None
    """The budget in tokens of prompts and replies."""
    cache: str | None = None
    """A file for the replies, on a disk of this machine. None: they are kept in memory."""
    scale: Sequence[float] | None = None
    """The lowest and the highest score. None: what the prompt states."""
    pattern: str | None = None
    """The regular expression that finds the score in a reply. None: what the prompt states."""
    needs_answer: bool = True
    """A completion without an answer block gets 0 and costs no request. False, for a prompt that looks at
    `{completion}`: all are judged."""
    max_chars: int = 4000
    """The limit of a completion or an answer in the request: longer ones lose their middle."""
    extra_body: Mapping[str, Any] | None = None
    """Other fields of the request, such as vLLM's `structured_outputs: {choice: ["1", "2"]}`. A null takes a field out:
    `{max_tokens: null, max_completion_tokens: 500}`."""

    def __post_init__(self) -> None:
        for name in (*ABOVE_0, *FROM_0):
            number = getattr(self, name)
            if number is None and getattr(JudgeSettings, name) is None:
                # As is its default.
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"{name}: {number!r} is no number")
            if not (number > 0 if name in ABOVE_0 else number >= 0):
                raise ValueError(
                    f"{name}: must be {'above 0' if name in ABOVE_0 else '0 or more'}, not {number}"
                )
