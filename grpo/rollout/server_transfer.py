"""The policy's weights on their way to servers: by files that the servers see too, or by vLLM's NCCL transfer."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor

from grpo.policy.model import Policy
from grpo.policy.weights import Bucket, engine_weights, flat, weight_buckets
from grpo.rollout.server_client import ServerClient
from grpo.rollout.server_flags import ORDER


class Transfer(Protocol):
    """A way of sending weights: a sync is a `collect` in all processes, and in the first an `install` for each server.

    What was collected stays until the next sync, for a server that is started anew.
    """

    is_parallel: bool
    """Whether several servers can load at once."""
    is_beside: bool
    """Whether a server can load while the learner updates, from another thread."""

    def collect(self) -> None:
        """Make the policy's current weights ready to be sent; all processes call it together."""
        ...

    def install(self, server: ServerClient, version: str) -> None:
        """Load the weights that were made ready into a server."""
        ...

    def differing(self, server: ServerClient) -> list[str] | None:
        """Return the names of weights that a server has other values of; None if it can't tell."""
        ...

    def close(self) -> None: ...


class FolderTransfer:
    """The transfer by safetensors files, written once for all servers."""

    is_parallel = is_beside = True

    def __init__(
        self, policy: Policy, folder: Path, *, dtype: torch.dtype, writes: bool, to_cpu: bool
    ) -> None:
        """Make a transfer by a folder that is the run's own.

        writes: whether this process writes the files. to_cpu: the servers are on CPUs, where a tied head is a weight.
        """
        self.policy, self.folder, self.dtype, self.writes = policy, folder, dtype, writes
        self.buckets = engine_weights if to_cpu else weight_buckets
        self.files: list[Path] = []

    def collect(self) -> None:
        self.close()
        if self.writes:
            self.folder.mkdir(parents=True)
        for number, bucket in enumerate(self.buckets(self.policy.model, dtype=self.dtype)):
            if self.writes:
                self.files.append(self.folder / f"{number:04d}.safetensors")
                weights = {name: weight.cpu().contiguous() for name, weight in bucket}
                save_file(weights, self.files[-1], {ORDER: json.dumps([*weights])})

    def install(self, server: ServerClient, version: str) -> None:
        server.init_weight_transfer_engine({})
        server.start_weight_update()
        server.update_weights({"files": [str(path.absolute()) for path in self.files]})
        server.finish_weight_update(version)

    def differing(self, server: ServerClient) -> list[str]:
        files = [str(path.absolute()) for path in self.files]
        call = {"method": "differing_weights", "kwargs": {"files": files}}
        found: list[list[str]] = server.post("/collective_rpc", call).json()["results"]
        return sorted({*chain.from_iterable(found)})

    def close(self) -> None:
        self.files = []
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)


class NcclTransfer:
    """The transfer from GPU to GPU, vLLM's own. It needs GPUs on both sides, and has only been written, not run.

    The weights wait in the first process's main memory: all processes would have to gather them anew for each server.
    """

    is_parallel = is_beside = False

    def __init__(self, policy: Policy, *, dtype: torch.dtype, keeps: bool) -> None:
        """Make a transfer; keeps: whether this process sends the weights."""
        self.policy, self.dtype, self.keeps = policy, dtype, keeps
        self.weights: Bucket = []
        self.senders: dict[tuple[str, str], Any] = {}
        """The senders by a server's address and start."""

    def collect(self) -> None:
        self.weights = []
        for name, weight in flat(weight_buckets(self.policy.model, dtype=self.dtype)):
            if self.keeps:
                self.weights.append((name, weight.cpu()))

    def install(self, server: ServerClient, version: str) -> None:
        about = server.about()
        key = (server.url, about["started"])
        if key not in self.senders:
            self.senders[key] = self._connect(server, about["world_size"])
        self.senders[key].send_weights()
        server.post("/update_weight_version", {"new_version": version})

    def differing(self, server: ServerClient) -> None:
        """Return None: the server is not asked which weights differ."""

    def _connect(self, server: ServerClient, world_size: int) -> Any:
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        host = _own_address(server.url)
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        info = NCCLTrainerInitInfo(host, port, world_size + 1, rank=0)
        source: Any = self
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=server, source=source)

    def metadata(self) -> list[Any]:
        """Return names, precisions and shapes, which vLLM's sender asks for before the weights."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.to(self.policy.device)) for name, weight in self.weights)

    def close(self) -> None:
        for sender in self.senders.values():
            sender.shutdown()


def _own_address(url: str) -> str:
    """Return this machine's address on the way to a server; nothing is sent."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))
        return probe.getsockname()[0]
