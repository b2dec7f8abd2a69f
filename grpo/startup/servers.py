"""The servers of `rollout.engine=vllm_server`, as the settings name them."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from grpo.config.schema import Config
from grpo.learner.launching import compute_dtype
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.rollout.server_check import check_server
from grpo.rollout.server_client import ServerClient
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import FOLDER
from grpo.rollout.server_transfer import FolderTransfer, NcclTransfer
from grpo.rollout.sync_proof import SyncProof


def check_servers(config: Config, family: ModelFamily) -> None:
    """Raise ServerError unless all servers answer, and have the run's model and settings."""
    for client in clients(config, family):
        with closing(client):
            check_server(client, **_wanted(config))


def build_server_engine(
    config: Config, accelerator: Accelerator, policy: Policy, proof: SyncProof
) -> ServerEngine:
    """Build the engine of servers; the first process holds them, and sends them weights in the way that they take."""
    dtype, is_first = compute_dtype(), accelerator.is_main_process
    # A run that was killed and the one that resumes it are two to a server.
    [token] = broadcast_object_list([secrets.token_hex(16)])
    servers = clients(config, policy.family, run=f"{config.run_dir}#{token}")
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
        check=partial(check_server, **_wanted(config), transfer=(way, device)),
        proof=proof,
        timeout_s=config.rollout.server_timeout_s,
        max_tries=config.rollout.server_tries,
    )


def clients(config: Config, family: ModelFamily, *, run: str | None = None) -> list[ServerClient]:
    """Return clients of the rollout's servers; run: the name that they are held under."""
    timeout_s = config.rollout.server_timeout_s
    return [ServerClient(url, family, timeout_s=timeout_s, run=run) for url in config.rollout.servers]


def transfer_folder(config: Config) -> Path:
    """Return the folder of weights on their way to servers, which no other run has."""
    run_dir = Path(config.run_dir).absolute()
    name = hashlib.blake2b(str(run_dir).encode(), digest_size=4).hexdigest()
    return Path(config.rollout.transfer_dir or run_dir) / f"weights_for_servers_{name}"


def _wanted(config: Config) -> dict[str, Any]:
    return {
        "dtype": compute_dtype(),
        "max_model_tokens": config.rollout.max_model_tokens,
        "fp32_head": config.model.cast_lm_head_to_fp32,
    }
