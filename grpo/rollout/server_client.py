"""A client of a vLLM server: token ids and the clip's own frames travel there, token ids and log-probs come back."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from grpo.groups import Group, Prompt, Rollout
from grpo.media.clip import Clip
from grpo.policy.families import ModelFamily
from grpo.rollout import Sampling, as_rollout
from grpo.rollout.server_flags import KEY_VARIABLE
from grpo.rollout.vllm_settings import sampling_fields

GENERATE = "/inference/v1/generate"
CONNECT_TIMEOUT_S = 5.0


class ServerError(ValueError):
    """The error of a server that can't be reached, or refuses a request: one line that names it."""


class ServerClient:
    """The client of one server."""

    def __init__(
        self, url: str, family: ModelFamily, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """Make a client; the key comes from the environment. timeout_s: how long an answer may take."""
        self.url, self.family = url.rstrip("/"), family
        key = os.environ.get(KEY_VARIABLE)
        self.http = httpx.Client(
            base_url=self.url,
            headers={**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            # A proxy that the environment names is for the world outside.
            trust_env=False,
        )

    def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Group:
        """Sample a group; raise ServerError if the server fails, ValueError if it has other prompt tokens."""
        request: dict[str, Any] = {
            "token_ids": self.family.folded_ids(prompt),
            "sampling_params": sampling_fields(self.family, sampling, seed),
            "return_token_ids": True,
        }
        if prompt.clip is not None:
            frames = base64.b64encode(packed_clip(self.family, prompt.clip)).decode()
            request["content_parts"] = [
                {"type": "video_url", "url": f"data:application/octet-stream;base64,{frames}"}
            ]
        return self.group(prompt, self.post(GENERATE, request).json())

    def group(self, prompt: Prompt, answer: Mapping[str, Any]) -> Group:
        """Return the group that a server's answer holds."""
        tokens = answer["prompt_token_ids"]
        if tuple(tokens) != prompt.token_ids:
            raise ValueError(
                f"sample {prompt.sample.id}: {self.url} expanded the prompt to {len(tokens)} tokens, "
                f"the learner to {len(prompt.token_ids)}; does the server have another model?"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
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

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self.ask("POST", path, json=body)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the server's answer; raise ServerError unless it is a good one."""
        try:
            answer = self.http.request(method, path, **options)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise ServerError(f"{self.url} does not answer: {why}") from error
        if answer.is_success:
            return answer
        if answer.status_code in (404, 405):
            hint = "it was not started by egogrpo serve, or with the flags that egogrpo serve --print shows"
            raise ServerError(f"{self.url} has no {path}: {hint}")
        if answer.status_code == 401:
            raise ServerError(f"{self.url} wants a key: set {KEY_VARIABLE}")
        raise ServerError(f"{self.url} refuses {path}: {_reason(answer)}")

    def close(self) -> None:
        self.http.close()


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
