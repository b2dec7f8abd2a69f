"""Whether a server is one that a run can train through: its model, its settings."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from grpo.policy.families import ModelFamily
from grpo.policy.model_folder import find_model_folder, weights_identity
from grpo.rollout.server_client import ServerClient, ServerError
from grpo.rollout.server_flags import FOLDER, vllm_version

MAX_NAMED = 4

LIMITS = ("max_model_tokens", "max_clip_tokens")
"""The settings that a server may have more of than a run."""

UNTOUCHED = "default"
"""vLLM's name for the version of weights that it has loaded itself."""


def check_server(
    client: ServerClient,
    *,
    dtype: torch.dtype,
    max_model_tokens: int,
    max_clip_tokens: int = 0,
    fp32_head: bool = False,
    transfer: tuple[str, str] | None = None,
) -> None:
    """Raise ServerError that names what does not fit: the model by names and shapes of weights, or a setting.

    max_clip_tokens: the most vision tokens of a clip. transfer: how the run sends weights, and to what kind of device;
    None: as the server takes them.
    """
    about = client.about()
    wanted = {
        # A learner need not have one.
        "vllm": vllm_version() or about.get("vllm"),
        "dtype": str(dtype).removeprefix("torch."),
        "head_dtype": str(torch.float32 if fp32_head else dtype).removeprefix("torch."),
        "logprobs_mode": "processed_logprobs",
        "max_model_tokens": max_model_tokens,
        "max_clip_tokens": max_clip_tokens,
        "code_rules": client.family.vocabulary and client.family.vocabulary.identity,
    }
    for name, value in wanted.items():
        has = about.get(name)
        if (has or 0) < value if name in LIMITS else has != value:
            raise ServerError(f"{client.url} has {name} {has}, the run {value}")
    if about["transfer"] is None:
        raise ServerError(f"{client.url} takes no weights: start it with egogrpo serve --for-training")
    if about["transfer"] != FOLDER and vllm_version() is None:
        raise ServerError(
            f"{client.url} takes weights by {about['transfer']}, which needs vLLM beside the learner too: install it, "
            f"or serve with --transfer {FOLDER}"
        )
    takes = (about["transfer"], about["device"])
    if transfer not in (None, takes):
        raise ServerError(f"{client.url} takes weights by {takes}, another server by {transfer}")
    if differing := differences(client.family, about["config"]):
        raise ServerError(
            f"{client.url} has another model; {len(differing)} weights differ: {'; '.join(differing[:MAX_NAMED])}"
        )


def check_same_weights(client: ServerClient) -> None:
    """Raise ServerError unless a server answers with the weights of the client's model folder, if that has some."""
    about = client.about()
    if about["version"] != UNTOUCHED:
        raise ServerError(f"{client.url} has the weights of a run, {about['version']}")
    ours, theirs = weights_identity(find_model_folder(client.family.path)), about["weights"]
    if ours and ours != theirs:
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ServerError(f"{client.url} has other weights than {client.family.path}: {', '.join(differing)}")


def differences(family: ModelFamily, other: dict[str, Any]) -> list[str]:
    """Return the weights in which a family's model and that of another config differ, each with both shapes."""
    kind = family.config.model_type
    if other["model_type"] != kind:
        return [f"all: it is a {other['model_type']!r} model, the policy a {kind!r}"]
    with torch.device("meta"):
        model = family.model_class(AutoConfig.for_model(**other))
    ours, theirs = _shapes(family.outline()), _shapes(model)
    return [
        f"{name} is {theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
