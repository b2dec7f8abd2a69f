"""What a vLLM server loads of this package (`server_flags.py` tells it to): the guard at its door, and its clips.

Whatever a client sends as a video is read by the model's own media settings: by this package, or already by the client.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from grpo.media.clip import ClipSource
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from grpo.policy.families import ModelFamily, load_family
from grpo.rollout.server_flags import VIDEO_LOADER

ZIP_MAGIC = b"PK\x03\x04"
"""How frames begin that a client has read (`server_client.packed_clip`), as no video does."""


class Guard:
    """An ASGI middleware that asks for the key on all paths but /health, which vLLM does on some alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        key = envs.VLLM_API_KEY
        self.keys = AuthenticationMiddleware(app, [key]) if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/health":
            await self.app(scope, receive, send)
        elif self.keys is not None and not self.keys.verify_token(Headers(scope=scope)):
            await JSONResponse({"error": "no key, or a wrong one"}, status_code=401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


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
