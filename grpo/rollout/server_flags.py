"""How vLLM's server is started so that it answers as the model was trained: its flags and its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from grpo.rollout.vllm_settings import engine_arguments
from grpo.run.model_inputs import ModelInputs

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment variable with the key that a server asks for, and that its clients send."""
VIDEO_LOADER = "egogrpo"
MODULE = "vllm.entrypoints.openai.api_server"
"""The module that serves; the command `vllm` does not start where vLLM was built for the CPU."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def server_flags(model: str, inputs: ModelInputs, *, dtype: str, on_gpu: bool, **more: Any) -> list[str]:
    """Return the flags of a server that answers questions about clips as the model was trained to.

    What a request leaves out is not filled in from the model's generation_config, which may ask for a repetition
    penalty or a top-k. Videos are read by the model's media settings; pages of other origins can't ask in a browser.
    """
    arguments = {
        "model": model,
        "dtype": dtype,
        "generation_config": "vllm",
        "enable_scale_out": True,
        "middleware": "grpo.rollout.vllm_server.Guard",
        "media_io_kwargs": {
            "video": {"video_backend": VIDEO_LOADER, "model": model, "media": asdict(inputs.media)}
        },
        "allowed_origins": [],
        **engine_arguments(inputs.rollout.max_model_tokens, on_gpu=on_gpu),
        **more,
    }
    return [word for name, value in arguments.items() for word in _flag(name, value)]


def server_environment(*, on_gpu: bool, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables that vLLM is started with, unless they are set already."""
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if not on_gpu:
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return {name: given.get(name, value) for name, value in wanted.items()}


def _flag(name: str, value: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
        return
    yield f"--{flag}"
    yield json.dumps(value) if isinstance(value, dict | list) else str(value)
