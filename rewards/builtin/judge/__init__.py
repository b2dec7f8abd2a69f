"""`judge`: a language model behind an OpenAI-compatible endpoint marks the answer. docs/judge.md says how to use it.

A score on the prompt's scale counts as a value from 0 to 1. There is no score without one: a reply that holds no
single number is asked for once more, more firmly, and then fails; so does an outage after its retries, and every
request after the budget. Cached scores remain free.

Each process has a judge of its own, with its own rate and number of requests at once. The budget is that of the `cache`
file, and spent together by all that use it; without a file each process has its own, and starts anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from grpo.groups import Rollout
from rewards import reward
from rewards.builtin.judge.client import ChatClient, JudgeCounts, JudgeError, Reply
from rewards.builtin.judge.prompt import JudgePrompt, fields_of, load_prompt
from rewards.builtin.judge.settings import JudgeSettings
from rewards.builtin.judge.store import JudgeStore
from rewards.parsing import ANSWER, is_blank, only_block

REQUEST = {"temperature": 0.0, "max_tokens": 32}
OWN_FIELDS = ("messages", "model", "stream", "n")


@dataclass(slots=True)
class _Asking:
    """A request under way and how many rollouts wait for it."""

    task: asyncio.Task[float]
    num_waiting: int = 0


class Judge:
    """A judge model's score of a completion, from 0 to 1. Its arguments are the fields of `JudgeSettings`."""

    __signature__ = inspect.signature(JudgeSettings)
    # For the probe and the checker, which then send two completions instead of hundreds.
    expensive = True

    def __init__(self, **arguments: Any) -> None:
        self._settings = settings = JudgeSettings(**arguments)
        self._prompt = load_prompt(settings.prompt, scale=settings.scale, pattern=settings.pattern)
        self._request = _request(settings, self._prompt)
        self._store = JudgeStore(settings.cache)
        self.counts = JudgeCounts()
        self._client = ChatClient(settings, self._store, self.counts)
        self._asking: dict[str, _Asking] = {}

    @reward
    async def __call__(self, rollout: Rollout) -> float:
        """The judge's score, from 0 to 1; 0 for a completion without an answer. Raises JudgeError, never a 0."""
        prediction = only_block(rollout.text, ANSWER)
        if self._settings.needs_answer and (prediction is None or is_blank(prediction)):
            return 0.0
        return await self.mark(rollout, (prediction or "").strip())

    async def mark(self, rollout: Rollout, prediction: str) -> float:
        """The judge's score, from 0 to 1, of what a completion is taken to answer, wherever in it that stands."""
        prompt = self._prompt.of(rollout.sample)
        shown = prompt.predicted(prediction)
        fields = fields_of(rollout, shown, max_chars=self._settings.max_chars, fence=prompt.fence)
        return self._prompt.scaled(await self._score(prompt.render(fields)))

    def stats(self) -> dict[str, int]:
        """Counts for the metrics, of this process: requests, retries, cached, tokens and more."""
        return asdict(self.counts)

    async def close(self) -> None:
        """Close connections and file; a further call opens them again."""
        await self._client.close()
        self._store.close()

    async def _score(self, prompt: str) -> float:
        """The score for a prompt: from the cache, from an equal request under way, or from the endpoint."""
        key = _key_of(self._body(prompt))
        known = self._store.find(key)
        score = None if known is None else self._prompt.read_score(known)
        if score is not None:
            self.counts.cached += 1
            return score
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = _Asking(asyncio.create_task(self._ask(key, prompt)))
        else:
            self.counts.shared += 1
        return await self._wait_for(key, asking)

    async def _wait_for(self, key: str, asking: _Asking) -> float:
        """The score that is under way. Who is cancelled leaves the others alone; after the last one it is given up."""
        asking.num_waiting += 1
        try:
            return await asyncio.shield(asking.task)
        finally:
            asking.num_waiting -= 1
            if not asking.num_waiting:
                # Nothing, if it is done.
                asking.task.cancel()
                if self._asking.get(key) is asking:
                    del self._asking[key]

    async def _ask(self, key: str, prompt: str) -> float:
        """Ask, and once more if the reply holds no score; JudgeError if there is none then."""
        low, high = self._prompt.scale
        firmer = f"{prompt}\n\n{self._prompt.firmly}"
        refused = []
        try:
            for text in (prompt, firmer):
                reply = await self._client.reply_to(self._body(text))
                score = None if reply.is_cut else self._prompt.read_score(reply.text)
                if score is not None:
                    self._store.keep(key, model=self._settings.model, reply=reply.text)
                    return score
                self.counts.asked_again += text is prompt
                refused.append(self._described(reply))
            raise JudgeError(f"no score from {low:g} to {high:g} in two replies: {', then '.join(refused)}")
        except JudgeError:
            self.counts.failed += 1
            raise

    def _described(self, reply: Reply) -> str:
        text = repr(self._client.clean(reply.text)[:100])
        return f"{text} (cut at max_tokens)" if reply.is_cut else text

    def _body(self, prompt: str) -> dict[str, Any]:
        return {**self._request, "messages": self._prompt.messages(prompt)}


def _request(settings: JudgeSettings, prompt: JudgePrompt) -> dict[str, Any]:
    """Every request's fields without the message."""
    given = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    given = {field: value for field, value in given.items() if value is not None}
    extra = settings.extra_body or {}
    if taken := [field for field in OWN_FIELDS if field in extra]:
        raise ValueError(f"extra_body: {taken[0]} is the judge's own")
    request = {"model": settings.model, **REQUEST, **prompt.request, **given, **extra}
    request = {field: value for field, value in request.items() if value is not None}
    try:
        json.dumps(request, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body: {error}") from None
    return request


def _key_of(body: Mapping[str, Any]) -> str:
    """A hash of all that a reply depends on, but not of the address: a server moves, its model stays the same."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
