"""The policy's weights on their way to servers: by files that the servers see too, or by vLLM's NCCL transfer."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor

from grpo.policy.model import Policy
from grpo.policy.weights import BUCKET_BYTES, Bucket, engine_weights, flat, weight_buckets
from grpo.rollout.server_client import ServerClient, ServerError, ServerGone
from grpo.rollout.server_flags import FOLDER, ORDER


class Transfer(Protocol):
    """A way of sending weights: a sync is a `collect` in all processes, and in the first an `install` for each server.

    What was collected stays until the next sync, for a server that is started anew.
    """

    is_beside: bool
    """Whether servers can load while the learner updates, from other threads, and several at once."""

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

    is_beside = True

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
            # A network's file system may keep what a slow server has open.
            self.folder.mkdir(parents=True, exist_ok=True)
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
    """The transfer from GPU to GPU, vLLM's own, in a process group for each server: the learner and all its workers.

    The weights wait in the first process's main memory: all processes would have to gather them anew for each server.
    It has run with a stand-in for NCCL alone, on CPUs.
    """

    is_beside = False

    def __init__(self, policy: Policy, *, dtype: torch.dtype, keeps: bool) -> None:
        """Make a transfer; keeps: whether this process sends the weights."""
        self.policy, self.dtype, self.keeps = policy, dtype, keeps
        self.weights: Bucket = []
        self.senders: dict[str, tuple[str, Any]] = {}
        """The sender of each server, by its address, and which of the server's starts it is connected to."""

    def collect(self) -> None:
        self.weights = []
        for name, weight in flat(weight_buckets(self.policy.model, dtype=self.dtype)):
            if self.keeps:
                self.weights.append((name, weight.cpu()))

    def install(self, server: ServerClient, version: str) -> None:
        about = server.about()
        started, sender = self.senders.pop(server.url, (None, None))
        try:
            if sender is None or started != about["started"]:
                _abort(sender)
                sender = self._connect(server, about["world_size"])
            sender.send_weights()
        except (ServerError, RuntimeError, OSError) as error:
            # It would be out of step with the server's workers.
            _abort(sender)
            if isinstance(error, ServerError):
                raise
            # What NCCL and its rendezvous raise, or a port that is taken.
            raise ServerGone(f"{server.url} does not take weights: {error}") from error
        self.senders[server.url] = about["started"], sender
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
        # vLLM's own buffers have 1 GiB, and the learner has two of them beside the weights that go into them.
        info = NCCLTrainerInitInfo(host, port, world_size + 1, packed_buffer_size_bytes=BUCKET_BYTES, rank=0)
        source: Any = self
        controls = _Controls(server)

        def connect() -> Any:
            # A thread begins on the first GPU.
            with torch.accelerator.device_index(self.policy.device.index):
                return NCCLTrainerWeightTransferEngine.trainer_init(info, client=controls, source=source)

        return controls.connected(connect)

    def metadata(self) -> list[Any]:
        """Return names, precisions and shapes, which vLLM's sender asks for before the weights."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.to(self.policy.device)) for name, weight in self.weights)

    def close(self) -> None:
        for _, sender in self.senders.values():
            sender.shutdown()


class _Controls:
    """The calls of a server that vLLM's sender makes (`VLLMWeightSyncClient`)."""

    def __init__(self, server: ServerClient) -> None:
        self.start_weight_update = server.start_weight_update
        self.finish_weight_update = server.finish_weight_update
        self.server = server
        self.sender: Any = None
        self.outcomes: SimpleQueue[Any] = SimpleQueue()
        """The sender that was connected, or why it was not."""

    def connected(self, connect: Callable[[], Any]) -> Any:
        """Return the sender that `connect` gives; raise why there is none, or ServerGone when the time is over.

        It may wait for ever for a worker that has died, in a call of NCCL that nothing ends, so a thread is left to it.
        """

        def put() -> None:
            try:
                self.outcomes.put(connect())
            except Exception as error:
                self.outcomes.put(error)

        Thread(target=put, daemon=True).start()
        try:
            outcome = self.outcomes.get(timeout=self.server.timeout_s)
        except Empty as error:
            raise ServerGone(
                f"{self.server.url} is not connected by NCCL within {self.server.timeout_s:g} s"
            ) from error
        if isinstance(outcome, Exception):
            raise outcome
        self.sender = outcome
        return outcome

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the server connect; if it fails, say so at once, since the learner would wait for its workers."""
        try:
            self.server.init_weight_transfer_engine(init_info)
        except ServerError as error:
            self.outcomes.put(error)
            raise

    def update_weights(self, update_info: Any) -> None:
        """Have the server receive; if it fails, end the sending, which would wait in NCCL for ever."""
        try:
            self.server.update_weights(update_info)
        except ServerError:
            _abort(self.sender)
            raise


def _abort(sender: Any) -> None:
    if sender is not None and sender.model_update_group is not None:
        # The abort wakes the sending, whose next call would use a communicator that is being freed.
        sender.model_update_group.broadcast = _refuse
        sender.model_update_group.destroy()


def _refuse(*_: object, **__: object) -> None:
    raise RuntimeError("the sending was ended")


def _own_address(url: str) -> str:
    """Return this machine's address on the way to a server; nothing is sent. vLLM's rendezvous knows IPv4 alone."""
    parts = urlsplit(url)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname, parts.port or 80))
            own, other = probe.getsockname()[0], probe.getpeername()[0]
    except OSError as error:
        raise ServerError(
            f"{url} has no IPv4 address ({error}), which weights by NCCL need: serve with --transfer {FOLDER}"
        ) from error
    check_interface(url, own, other, os.environ)
    return own


def check_interface(url: str, own: str, other: str, environment: Mapping[str, str]) -> None:
    """Raise ServerError for a server on another machine if NCCL is to use this one's loopback (`launching.py`)."""
    is_here = own == other or ip_address(own).is_loopback
    if environment.get("NCCL_SOCKET_IFNAME") == "lo" and not is_here:
        raise ServerError(
            f"{url} is on another machine: set NCCL_SOCKET_IFNAME to the interface that leads there"
        )
