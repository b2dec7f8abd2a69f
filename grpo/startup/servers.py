"""The servers that a run samples through: those that the settings name, or one that the run starts for itself."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from grpo.config.schema import Config
from grpo.learner.launching import compute_dtype, on_gpu
from grpo.media.sampling import most_vision_tokens
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.rollout.own_server import OwnServer, start_server
from grpo.rollout.server_check import check_server
from grpo.rollout.server_client import ServerClient
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import FOLDER, server_environment, server_flags, training_flags
from grpo.rollout.server_transfer import FolderTransfer, NcclTransfer
from grpo.rollout.sync_proof import SyncProof
from grpo.rollout.vllm_arguments import MAX_SEQUENCES
from grpo.run.folder import SERVER_LOG
from grpo.run.model_inputs import ModelInputs


def check_servers(config: Config, family: ModelFamily) -> None:
    """Raise ServerError unless all servers answer, and have the run's model and settings."""
    for client in clients(config, family, config.rollout.servers):
        with closing(client):
            check_server(client, **_wanted(config, family))


def check_process_gpus(gpus: str | None, visible: str | None, *, num_learners: int) -> None:
    """Raise ValueError unless a run's own server has a GPU, on which no learner is.

    visible: the learners' CUDA_VISIBLE_DEVICES, of which the first so many have one each.
    """
    if not gpus:
        raise ValueError(
            "rollout.process_gpus: set the GPU of rollout.engine=vllm_process, one without a learner"
        )
    used = (visible.split(",") if visible else [*map(str, range(num_learners))])[:num_learners]
    first = gpus.split(",")[0].strip()
    if first in map(str.strip, used):
        raise ValueError(
            f"rollout.process_gpus={gpus}: a learner is on {first}; they are on {', '.join(used)}"
        )


OWN_TIMEOUT_S = 10.0
"""How long a run waits for a server of its own that has failed: nobody starts it anew."""


def build_server_engine(
    config: Config, accelerator: Accelerator, policy: Policy, proof: SyncProof
) -> ServerEngine:
    """Build the engine of servers; the first process holds them, and sends them weights in the way that they take."""
    own = None
    if config.rollout.engine == "vllm_process" and accelerator.is_main_process:
        own = start_own(config, policy.family)
    try:
        return _build(config, accelerator, policy, proof, own)
    except BaseException:
        if own is not None:
            own.close()
        raise


def start_own(config: Config, family: ModelFamily) -> OwnServer:
    """Start the run's own server, and wait until it is up."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    flags = own_flags(config, family, on_gpu=on_gpu())
    environment = server_environment(on_gpu=on_gpu(), for_training=True)
    if config.rollout.process_gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = config.rollout.process_gpus
    own = start_server(flags, environment, run_dir / SERVER_LOG)
    try:
        own.wait_until_up(config.rollout.server_timeout_s)
    except BaseException:
        own.close()
        raise
    return own


def own_flags(config: Config, family: ModelFamily, *, on_gpu: bool) -> list[str]:
    """Return the flags of the run's own server."""
    more: dict[str, Any] = training_flags(transfer=FOLDER)
    # The others wait in the server.
    more["max_num_seqs"] = min(MAX_SEQUENCES, config.optim.prompts_per_step * config.rollout.group_size)
    if config.model.cast_lm_head_to_fp32:
        more["hf_overrides"] = {"head_dtype": "float32"}
    if on_gpu:
        more["gpu_memory_utilization"] = config.rollout.gpu_memory_frac
    dtype = str(compute_dtype()).removeprefix("torch.")
    inputs = ModelInputs.of(config)
    return server_flags(family.path, inputs, family.patches, dtype=dtype, on_gpu=on_gpu, **more)


def _build(
    config: Config, accelerator: Accelerator, policy: Policy, proof: SyncProof, own: OwnServer | None
) -> ServerEngine:
    """Build the engine; own: the server that this process has started, if it has."""
    dtype, is_first = compute_dtype(), accelerator.is_main_process
    # A run that was killed and the one that resumes it are two to a server.
    token, url, key = broadcast_object_list([secrets.token_hex(16), own and own.url, own and own.key])
    urls = [url] if url else config.rollout.servers
    servers = clients(config, policy.family, urls, run=f"{config.run_dir}#{token}", key=key)
    [about] = broadcast_object_list([servers[0].about() if is_first else {}])
    way, device = about["transfer"], about["device"]
    transfer = (
        FolderTransfer(policy, transfer_folder(config), dtype=dtype, writes=is_first, to_cpu=device == "cpu")
        if way == FOLDER
        else NcclTransfer(policy, dtype=dtype, keeps=is_first)
    )
    return ServerEngine(
        servers,
        transfer,
        check=partial(check_server, **_wanted(config, policy.family), transfer=(way, device)),
        proof=proof,
        timeout_s=OWN_TIMEOUT_S if url else config.rollout.server_timeout_s,
        max_tries=config.rollout.server_tries,
        own=own,
        overlap=config.rollout.overlap,
    )


def clients(
    config: Config,
    family: ModelFamily,
    urls: Sequence[str],
    *,
    run: str | None = None,
    key: str | None = None,
) -> list[ServerClient]:
    """Return clients of servers. run: the name that they are held under. key: None: the environment's."""
    timeout_s = config.rollout.server_timeout_s
    return [ServerClient(url, family, timeout_s=timeout_s, run=run, key=key) for url in urls]


def transfer_folder(config: Config) -> Path:
    """Return the folder of weights on their way to servers, which no other run has."""
    run_dir = Path(config.run_dir).absolute()
    name = hashlib.blake2b(str(run_dir).encode(), digest_size=4).hexdigest()
    return Path(config.rollout.transfer_dir or run_dir) / f"weights_for_servers_{name}"


def _wanted(config: Config, family: ModelFamily) -> dict[str, Any]:
    max_tokens = config.rollout.max_model_tokens
    return {
        "dtype": compute_dtype(),
        "max_model_tokens": max_tokens,
        "max_clip_tokens": min(most_vision_tokens(config.media, family.patches), max_tokens),
        "fp32_head": config.model.cast_lm_head_to_fp32,
    }
