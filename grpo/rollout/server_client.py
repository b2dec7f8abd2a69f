"""A client of a vLLM server: token ids and the clip's own frames travel there, token ids and log-probs come back."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

import httpx
import numpy as np

from grpo.groups import Group, Prompt, Rollout
from grpo.media.clip import Clip
from grpo.policy.families import ModelFamily
from grpo.policy.families.family import picture_of
from grpo.rollout import Sampling, as_rollout
from grpo.rollout.server_flags import ABOUT, GENERATE, HOLD, KEY_VARIABLE, RUN_HEADER, VERSION_HEADER
from grpo.rollout.vllm_settings import sampling_fields

CONNECT_TIMEOUT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443}
ENDS = {"stop", "length"}
"""Why a whole completion ends: by itself, or at the limit of tokens."""


class ServerError(ValueError):
    """The error of a server that refuses a request: one line that names it."""


class ServerGone(ServerError):
    """The error of a server that does not answer, fails, or has other weights: another one may do better."""


class ServerClient:
    """The client of one server."""

    def __init__(
        self,
        url: str,
        family: ModelFamily,
        *,
        timeout_s: float,
        run: str | None = None,
        key: str | None = None,
    ) -> None:
        """Make a client.

        timeout_s: how long an answer may take. run: the name of the run that the server is held for, and behind a #
        what only the run knows; None: it is not held. key: what the server asks for; None: the environment's.
        """
        self.url, self.family, self.timeout_s = url.rstrip("/"), family, timeout_s
        # A header is ASCII, and a run's folder need not be.
        self.run = quote(run, safe="/#") if run is not None else None
        key = key or os.environ.get(KEY_VARIABLE)
        if key and not (key.isascii() and key.isprintable() and key == key.strip()):
            # The error of a request would show it.
            raise ServerError(
                f"{KEY_VARIABLE} has a character that no header may have, such as the end of a line"
            )
        headers = {RUN_HEADER: self.run} if self.run is not None else {}
        self._held: httpx.Response | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock, self._is_cancelled = Lock(), False
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            # A proxy that the environment names is for the world outside.
            trust_env=False,
        )

    def generate(self, prompt: Prompt, sampling: Sampling, seed: int, *, version: str | None = None) -> Group:
        """Sample a group; raise ServerError if the server fails, ValueError if it has other prompt tokens.

        version: of the weights to sample from; None: any.
        """
        request: dict[str, Any] = {
            "token_ids": self.family.folded_ids(prompt),
            "sampling_params": sampling_fields(self.family, sampling, seed),
            "return_token_ids": True,
        }
        if prompt.clips:
            request["content_parts"] = [content_part(self.family, clip) for clip in prompt.clips]
        answer = self.post(GENERATE, request)
        if version is not None and answer.headers.get(VERSION_HEADER) != version:
            raise ServerGone(f"{self.url} sampled from the weights {answer.headers.get(VERSION_HEADER)!r}")
        return self.group(prompt, answer.json())

    def group(self, prompt: Prompt, answer: Mapping[str, Any]) -> Group:
        """Return the group that a server's answer holds."""
        tokens = answer["prompt_token_ids"]
        if tuple(tokens) != prompt.token_ids:
            raise ValueError(
                f"sample {prompt.sample.id}: {self.url} expanded the prompt to {len(tokens)} tokens, "
                f"the learner to {len(prompt.token_ids)}; does the server have another model?"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        # A server that is told to end, or to pause, gives back what it has of a completion.
        if broken := {choice["finish_reason"] for choice in choices} - ENDS:
            raise ServerGone(f"{self.url} broke a completion off: {', '.join(map(str, broken))}")
        return Group(prompt=prompt, rollouts=tuple(self._rollout(prompt, choice) for choice in choices))

    def _rollout(self, prompt: Prompt, choice: Mapping[str, Any]) -> Rollout:
        steps = choice["logprobs"]["content"]
        return as_rollout(
            prompt,
            text=self.family.decode(choice["token_ids"]),
            token_ids=choice["token_ids"],
            logprobs=[step["logprob"] for step in steps],
            stopped=choice["finish_reason"] == "stop",
        )

    def about(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the server says of itself (`vllm_server.Guard`). timeout_s: None: that of all answers."""
        answer = self._ask("GET", ABOUT, timeout_s=timeout_s)
        if "json" not in answer.headers.get("content-type", ""):
            raise ServerError(f"{self.url} is no server that egogrpo serve has started")
        return answer.json()

    def hold(self) -> None:
        """Keep the server for this client's run until `close`, or the end of this process."""
        if self._held is not None:
            # Of a server that was started anew.
            self._held.close()
        self._held = self._ask("POST", HOLD, stream=True)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self._ask("POST", path, body)

    # The calls that vLLM's weight transfer makes (`VLLMWeightSyncClient`).

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.post("/finish_weight_update", {"weight_version": weight_version})

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Return the server's answer; raise ServerError unless it is a good one. stream: its body comes later."""
        try:
            extensions = {"trace": self._note}
            timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S) if timeout_s else self.http.timeout
            request = self.http.build_request(method, path, json=body, extensions=extensions, timeout=timeout)
            answer = self.http.send(request, stream=stream)
            if not answer.is_success:
                answer.read()
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise ServerGone(f"{self.url} does not answer: {why}") from error
        if answer.is_success:
            return answer
        if answer.status_code in (404, 405):
            hint = "it was not started by egogrpo serve, or with the flags that egogrpo serve --print shows"
            raise ServerError(f"{self.url} has no {path}: {hint}")
        if answer.status_code == 401:
            raise ServerError(f"{self.url} wants a key: set {KEY_VARIABLE}")
        # A server that was started anew is held by nobody.
        kind = ServerGone if answer.status_code in (409, 500, 502, 503, 504) else ServerError
        raise kind(f"{self.url} refuses {path}: {_reason(answer)}")

    def _note(self, event: str, about: Mapping[str, Any]) -> None:
        """Remember the socket of each connection, which httpx tells of when it is made."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        with self._lock:
            self._sockets.add(about["return_value"].get_extra_info("socket"))
        if self._is_cancelled:
            self.cancel()

    def has_ended(self) -> bool:
        """Return whether nothing listens where the server did; one that is slow or out of reach has not ended."""
        try:
            socket.create_connection(
                (
                    self.http.base_url.host,
                    self.http.base_url.port or DEFAULT_PORTS[self.http.base_url.scheme],
                ),
                timeout=CONNECT_TIMEOUT_S,
            ).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    def cancel(self) -> None:
        """End all requests under way, and those to come, as if the server were gone; any thread may call."""
        self._is_cancelled = True
        self.hang_up()

    def hang_up(self) -> None:
        """End all requests under way, and let go of the server; any thread may call."""
        with self._lock:
            for each in self._sockets:
                # To close one would not wake a thread that reads from it.
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
        self.http.close()


def content_part(family: ModelFamily, clip: Clip) -> dict[str, str]:
    """Return a clip as a part of a request: a picture as PNG, which keeps its pixels, and a video by `packed_clip`."""
    if not clip.is_picture:
        frames = base64.b64encode(packed_clip(family, clip)).decode()
        return {"type": "video_url", "url": f"data:application/octet-stream;base64,{frames}"}
    buffer = io.BytesIO()
    picture_of(clip).save(buffer, "PNG")
    return {
        "type": "image_url",
        "url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
    }


def packed_clip(family: ModelFamily, clip: Clip) -> bytes:
    """Return a clip's frames and metadata as bytes, as `vllm_server.ContractLoader` takes them."""
    frames_FHWC, metadata = family.engine_video(clip)
    buffer = io.BytesIO()
    np.savez(buffer, frames_FHWC=frames_FHWC, metadata=np.array(json.dumps(metadata)))
    return buffer.getvalue()


def _reason(answer: httpx.Response) -> str:
    """Return why a request was refused, in one line: the message of an error as OpenAI's API has it, or the text."""
    text = answer.text
    if "json" in answer.headers.get("content-type", ""):
        error = answer.json().get("error", text)
        text = error["message"] if isinstance(error, dict) else str(error)
    return " ".join(f"{answer.status_code} {text}".split())[:300]
