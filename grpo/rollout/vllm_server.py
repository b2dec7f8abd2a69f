"""What a vLLM server loads of this package (`server_flags.py` tells it to): the guard at its door, and its clips.

Whatever a client sends as a video is read by the model's own media settings: by this package, or already by the client.
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import unquote

import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from grpo.codec.vocabulary import read_vocabulary
from grpo.media.clip import ClipSource
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model_folder import find_model_folder, weights_identity
from grpo.rollout.server_flags import (
    ABOUT,
    GENERATE,
    HOLD,
    KEY_VARIABLE,
    RUN_HEADER,
    VERSION_HEADER,
    VIDEO_LOADER,
    vllm_version,
)
from grpo.rollout.vllm_settings import CODE_RULES

FREE = (
    "/v1", "/inference", "/health", "/metrics", "/version", "/load", "/ping", "/openapi.json", "/tokenize",
    "/detokenize", ABOUT, HOLD,
)  # fmt: skip
"""How the paths begin that need no run. All others steer the server: its weights, its caches, its processes."""
PING_S = 5.0
"""The pause between signs of life to a run that holds the server, so that a machine that is gone is noticed."""
ZIP_MAGIC = b"PK\x03\x04"
"""How frames begin that a client has read (`server_client.packed_clip`), as no video does."""


class Guard:
    """An ASGI middleware: it asks for the key, keeps the server for one run, and marks answers with their weights.

    vLLM's own check leaves paths open to those without the key, and where there is none no path steers the server. A
    run holds it as long as a connection to `HOLD` is open, which ends with its process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        key = envs.VLLM_API_KEY
        self.keys = AuthenticationMiddleware(app, [key]) if key else None
        self.holder: str | None = None
        self.started = secrets.token_hex(4)
        """What tells this start of the server from another one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        status, why = self._refusal(path, headers)
        if why:
            await JSONResponse({"error": why}, status_code=status)(scope, receive, send)
        elif path == HOLD:
            await self._hold(headers[RUN_HEADER], receive, send)
        elif path == ABOUT:
            about = await self._about(scope, self._is_holder(headers))
            await JSONResponse(about)(scope, receive, send)
        else:
            await self._versioned(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str]:
        """Return the status and the reason for which a request is refused; no reason if it is not."""
        if self.keys is not None and not self.keys.verify_token(headers):
            return 401, "no key, or a wrong one"
        if self.keys is None and (path == HOLD or not path.startswith(FREE)):
            return 401, f"it was started without {KEY_VARIABLE}, so that nobody may steer it"
        if self.holder is not None and not self._is_holder(headers) and path not in (ABOUT, "/metrics"):
            return 409, f"the run {unquote(self.holder.partition('#')[0])} uses this server"
        if path == HOLD and (RUN_HEADER not in headers or self.holder is not None):
            return 409, "it is held already, or by a run without a name"
        if self.holder is None and not path.startswith(FREE):
            return 409, "no run holds this server"
        return 200, ""

    def _is_holder(self, headers: Headers) -> bool:
        """Whether a request is of the run that holds the server."""
        run = headers.get(RUN_HEADER)
        if self.holder is None or run is None:
            return False
        return secrets.compare_digest(run.encode(), self.holder.encode())

    async def _hold(self, run: str, receive: Receive, send: Send) -> None:
        """Keep the server for a run until its connection ends."""
        self.holder = run
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            gone = asyncio.ensure_future(_disconnected(receive))
            while not gone.done():
                await send({"type": "http.response.body", "body": b".", "more_body": True})
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(gone), PING_S)
        finally:
            self.holder = None

    async def _about(self, scope: Scope, is_holder: bool) -> dict[str, Any]:
        """Return what a run has to know of the server before it uses it, and never who holds it."""
        client = scope["app"].state.engine_client
        model, transfer = client.vllm_config.model_config, client.vllm_config.weight_transfer_config
        return {
            "vllm": vllm_version(),
            "config": json.loads(model.hf_config.to_json_string(use_diff=False)),
            "max_model_tokens": model.max_model_len,
            # What vLLM holds each clip against: a larger one it refuses in the middle of a run.
            "max_clip_tokens": client.input_processor.mm_encoder_cache_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "head_dtype": str(model.head_dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "code_rules": code_rules(model),
            "transfer": transfer and transfer.backend,
            "world_size": client.vllm_config.parallel_config.world_size_across_dp,
            "weights": await asyncio.to_thread(weights_identity, find_model_folder(model.model)),
            "version": await client.get_weight_version(),
            "device": client.vllm_config.device_config.device_type,
            "held": self.holder is not None,
            "holds": is_holder,
            "started": self.started,
        }

    async def _versioned(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the version of the weights at the beginning and at the end of it in the header."""
        if scope["path"] != GENERATE:
            await self.app(scope, receive, send)
            return
        client = scope["app"].state.engine_client
        before = await client.get_weight_version()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                after = await client.get_weight_version()
                version = after if after == before else f"{before} to {after}"
                MutableHeaders(scope=message)[VERSION_HEADER] = version
            await send(message)

        await self.app(scope, receive, marked)


def code_rules(model: Any) -> str | None:
    """Return the identity of the vocabulary whose rules a vLLM model's tokens are sampled by; None: by none."""
    vocabulary = read_vocabulary(find_model_folder(model.model))
    return vocabulary.identity if vocabulary and CODE_RULES in (model.logits_processors or ()) else None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@VIDEO_LOADER_REGISTRY.register(VIDEO_LOADER)
class ContractLoader(VideoLoader):
    """The loader of videos that clients send: their frames are chosen and sized as the model was trained with."""

    @classmethod
    def load_bytes(
        cls, data: bytes, *, model: str = "", media: Mapping[str, Any] | None = None, **_: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return frames and metadata of a video file, or those that a client has read already.

        model: the folder of the model. media: its `MediaSettings`.
        """
        if data.startswith(ZIP_MAGIC):
            with np.load(io.BytesIO(data), allow_pickle=False) as packed:
                return packed["frames_FHWC"], json.loads(str(packed["metadata"]))
        family = _family(model)
        with NamedTemporaryFile() as file:
            Path(file.name).write_bytes(data)
            settings, source = MediaSettings(**(media or {})), ClipSource(video=file.name)
            return family.engine_video(read_source(source, settings=settings, patches=family.patches))


@lru_cache
def _family(model: str) -> ModelFamily:
    return load_family(model)
