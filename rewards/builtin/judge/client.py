"""Requests to an OpenAI-compatible endpoint: their rate, retries and budget. Sends one user message, gets one reply.

httpx and not the openai package, whose own retries don't count what they send against a budget, pause one request where
the endpoint asked for a pause of all, and repeat what was billed.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from rewards.builtin.judge.settings import JudgeSettings
from rewards.builtin.judge.store import JudgeStore

if TYPE_CHECKING:
    import httpx

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})
MAX_BACKOFF_S = 30.0
# Who is told to wait longer should hear of it.
MAX_RETRY_AFTER_S = 120.0
MAX_EXCERPT_CHARS = 200
# Not 1: a single request may be what its server can't stand.
GIVEN_UP_FOR_OUTAGE = 3
OUTAGE_PAUSE_S = 30.0


class JudgeError(RuntimeError):
    """The judge gave no score: an outage, a spent budget, a reply without a score. Never a 0."""


class PassingFault(Exception):
    """A fault that may be gone at the next attempt."""

    max_retries = math.inf


class UnreadableReply(PassingFault):
    """A reply that is no chat completion. It was made, and so paid for: one more attempt, not many."""

    max_retries = 1


@dataclass(slots=True)
class JudgeCounts:
    """What a judge has done so far, in this process."""

    requests: int = 0
    """Sent over HTTP, retries included."""
    retries: int = 0
    cached: int = 0
    """Scores from the store."""
    shared: int = 0
    """Scores of rollouts that waited for another one's equal request."""
    asked_again: int = 0
    """Replies without a score."""
    failed: int = 0
    """Requests that came to nothing."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(NamedTuple):
    """What the model wrote, and whether it was cut off at its limit of tokens."""

    text: str
    is_cut: bool


class ChatClient:
    """One endpoint, as one process uses it."""

    def __init__(self, settings: JudgeSettings, store: JudgeStore, counts: JudgeCounts) -> None:
        self._settings, self._store, self._counts = settings, store, counts
        self._url = checked_url(settings.base_url) + "/chat/completions"
        # So that it is missed now.
        read_api_key(settings.api_key_env)
        self._next_turn_s = 0.0
        self._num_given_up = 0
        """Requests in a row, with no reply to any other one in between."""
        self._outage, self._outage_ends_s = "", 0.0
        # Of its own: it may not move the run's random numbers.
        self._jitter = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient
        self._slots: asyncio.Semaphore

    async def reply_to(self, body: Mapping[str, Any]) -> Reply:
        """The endpoint's reply to a request; JudgeError says why there is none.

        After GIVEN_UP_FOR_OUTAGE requests in a row that came to nothing, all fail at once for OUTAGE_PAUSE_S; then
        one attempt each, until there is a reply. A slot is kept through the retries, so that an outage costs at most
        (max_concurrent + 2) * (retries + 1) requests, however many completions wait.
        """
        self._enter_loop()
        async with self._slots:
            num_retries = 0
            while True:
                try:
                    reply = await self._attempt(body)
                    self._num_given_up = 0
                    return reply
                except PassingFault as fault:
                    is_outage = self._num_given_up >= GIVEN_UP_FOR_OUTAGE
                    if is_outage or num_retries >= min(self._settings.retries, fault.max_retries):
                        raise self._give_up(fault, num_retries) from None
                self._counts.retries += 1
                backoff_s = min(self._settings.backoff_s * 2**num_retries, MAX_BACKOFF_S)
                await asyncio.sleep(backoff_s * self._jitter.uniform(0.5, 1.0))
                num_retries += 1

    def _give_up(self, fault: PassingFault, num_retries: int) -> JudgeError:
        self._num_given_up += 1
        if self._num_given_up >= GIVEN_UP_FOR_OUTAGE:
            self._outage, self._outage_ends_s = str(fault), time.monotonic() + OUTAGE_PAUSE_S
        return JudgeError(f"{fault} ({num_retries} retries)")

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if self._loop is asyncio.get_running_loop():
            self._loop = None
            await self._http.aclose()

    def _enter_loop(self) -> None:
        """Make what belongs to the running event loop, which is a new one wherever `asyncio.run` is called again."""
        import httpx

        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        key = read_api_key(self._settings.api_key_env)
        # No time limit of its own: each of httpx's covers a part of a request, and a server may trickle.
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
            limits=httpx.Limits(max_connections=self._settings.max_concurrent),
        )
        self._slots = asyncio.Semaphore(self._settings.max_concurrent)
        self._loop = loop

    async def _attempt(self, body: Mapping[str, Any]) -> Reply:
        import httpx

        await self._turn()
        if time.monotonic() < self._outage_ends_s:
            raise JudgeError(f"{self._outage} (an outage: nothing is sent for {OUTAGE_PAUSE_S:g} s)")
        self._take_request()
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                response = await self._http.post(self._url, json=body)
        except TimeoutError:
            raise PassingFault(f"{self._url}: no reply within {limit_s:g} s") from None
        except httpx.RequestError as error:
            raise PassingFault(self.clean(f"{self._url}: {type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            self._raise_for_status(response)
        return self._read(response)

    async def _turn(self) -> None:
        """Wait until the rate, and an endpoint that asked for a pause, allow one more request."""
        while (wait_s := self._next_turn_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        per_minute = self._settings.requests_per_minute
        self._next_turn_s = time.monotonic() + (60 / per_minute if per_minute else 0.0)

    def _take_request(self) -> None:
        max_requests, max_tokens = self._settings.max_requests, self._settings.max_tokens_total
        if not self._store.take_request(max_requests=max_requests, max_tokens=max_tokens):
            num_requests, num_tokens = self._store.spent()
            raise JudgeError(
                f"budget spent: {num_requests} requests, max_requests is {max_requests}; "
                f"{num_tokens} tokens, max_tokens_total is {max_tokens}"
            )
        self._counts.requests += 1

    def _raise_for_status(self, response: httpx.Response) -> None:
        """PassingFault if another attempt may help, else JudgeError."""
        said = self.clean(f"{self._url}: {response.status_code} {response.reason_phrase}: {response.text}")
        if response.status_code in (401, 403):
            name = self._settings.api_key_env
            raise JudgeError(
                f"{said} (sent {f'the key in {name}' if name else 'no key: api_key_env is not set'})"
            )
        # OpenAI's code for an account without credit, which has the status of too many requests.
        if response.status_code not in TRANSIENT_STATUS or "insufficient_quota" in response.text:
            raise JudgeError(said)
        pause_s = retry_after_s(response.headers.get("Retry-After"))
        if pause_s > MAX_RETRY_AFTER_S:
            raise JudgeError(f"{said} (asks for a pause of {pause_s:.0f} s)")
        # All requests pause, not this one alone: they share the endpoint's limit.
        self._next_turn_s = max(self._next_turn_s, time.monotonic() + pause_s)
        raise PassingFault(said)

    def _read(self, response: httpx.Response) -> Reply:
        """The reply in a response, whose tokens are counted even if there is none."""
        try:
            content = response.json()
        except (ValueError, RecursionError):
            content = None
        self._count_tokens(content)
        match content:
            case {"choices": [{"message": {**message}, **choice}, *_]}:
                text = message.get("content")
                if text is None or isinstance(text, str):
                    return Reply(text or "", is_cut=choice.get("finish_reason") == "length")
        raise UnreadableReply(self.clean(f"{self._url}: no chat completion: {response.text}"))

    def _count_tokens(self, content: object) -> None:
        match content:
            case {"usage": {"prompt_tokens": int(num_prompt), "completion_tokens": int(num_completion)}}:
                self._counts.prompt_tokens += num_prompt
                self._counts.completion_tokens += num_completion
                self._store.add_tokens(num_prompt + num_completion)
            case {"choices": [_, *_]} if self._settings.max_tokens_total is not None:
                raise JudgeError(
                    f"{self._url}: reports no usage of tokens, so max_tokens_total can't be kept; use max_requests"
                )

    def clean(self, text: str) -> str:
        """A text in one line, without the key (servers repeat it) and not too long."""
        if key := read_api_key(self._settings.api_key_env):
            # In any spelling that JSON has for it (`\u002d` or `\/`), and through a JSON string inside another one.
            spelt = "".join(rf"\\{{0,16}}(?:{re.escape(char)}|u{ord(char):04x})" for char in key)
            text = re.sub(spelt, "[key]", text, flags=re.IGNORECASE)
        text = " ".join(text.split())
        cut_at = len(self._url) + MAX_EXCERPT_CHARS
        return text if len(text) <= cut_at else text[:cut_at] + "..."


def checked_url(base_url: str) -> str:
    """The address without a slash at its end; ValueError if it is none, or holds what belongs elsewhere."""
    url = urlsplit(base_url)
    if url.username or url.password or url.query or url.fragment:
        # Not repeated in the message: it may be a password.
        raise ValueError("base_url: holds a user, a password or a query; a key's place is api_key_env")
    try:
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        # A port that is no number.
        is_address = False
    if not is_address or re.search(r"\s", base_url):
        raise ValueError(f"base_url: {base_url!r} is no address such as http://127.0.0.1:8000/v1")
    return base_url.rstrip("/").removesuffix("/chat/completions")


def read_api_key(name: str | None) -> str | None:
    """The key in an environment variable; ValueError, which never repeats a key, if there is none."""
    if name is None:
        return None
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        # Not repeated in the message: it may be the key.
        raise ValueError("api_key_env: is no name of an environment variable in capitals (no key goes here)")
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"api_key_env: the environment variable {name} is not set")
    if not re.fullmatch("[!-~]+", key):
        raise ValueError(f"api_key_env: {name} holds spaces or characters that no key has")
    return key


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, a number or a date; 0 without one that is readable."""
    if header is None:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header.strip()):
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0
