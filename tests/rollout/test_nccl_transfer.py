"""Weights by vLLM's NCCL transfer: its own sender, routes, requests and workers, with a stand-in for NCCL alone."""

from __future__ import annotations

import inspect
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.policy.model import Policy
from grpo.policy.weights import flat, weight_buckets
from grpo.rollout import server_transfer
from grpo.rollout.server_client import ServerClient, ServerError
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import ABOUT, HOLD
from grpo.rollout.server_transfer import NcclTransfer
from tests.support import tiny

vllm = pytest.importorskip("vllm")
DTYPE = torch.bfloat16


class Communicator:
    """A communicator whose processes are threads; as NCCL's, it waits for ever for one that does not come."""

    meetings: dict[str, tuple[threading.Barrier, list[Tensor]]] = {}

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self.rank, self.world_size = group.rank, group.world_size
        name = str(uuid.uuid4())
        if not self.rank:
            self.meetings[name] = threading.Barrier(self.world_size), []
        self.barrier, self.sent = self.meetings[group.broadcast_obj(name, src=0)]
        self.barrier.wait(60)

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        if self.rank == src:
            assert not self.barrier.broken, "a communicator that is freed is used"
            self.sent.append(tensor)
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            if self.rank != src:
                raise
            # An abort wakes the sender, which is told nothing.
            return
        if self.rank != src:
            tensor.copy_(self.sent[-1])
        self.barrier.wait()

    def destroy(self) -> None:
        self.barrier.abort()


class Model(torch.nn.Module):
    """A model that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[str, Tensor]] = []
        self.fails_after = 10**9

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, weight in weights:
            if len(self.given) == self.fails_after:
                raise RuntimeError("out of memory")
            self.given.append((name, weight.clone()))


class VLLM(ServerClient):
    """A client of vLLM's own routes, engine and workers, as many as share a model."""

    def __init__(self, url: str, *, tensor_parallel_size: int = 1) -> None:
        from starlette.testclient import TestClient

        super().__init__(url, tiny.family(), timeout_s=60.0, run="run#secret")
        self.size, self.paths = tensor_parallel_size, list[str]()
        self.start()
        self.http = TestClient(self.app(), base_url=url, raise_server_exceptions=False)

    def start(self) -> None:
        """Start anew: other workers, which know of no transfer."""
        self.started, self.version, self.held = str(uuid.uuid4()), "default", False
        self.workers = [worker(rank, self.size) for rank in range(self.size)]

    def app(self) -> Any:
        from vllm.entrypoints.serve.dev.rlhf import api_router

        app = api_router.FastAPI()
        app.state.engine_client = Engine(self)

        @app.middleware("http")
        async def note(request: Any, call_next: Any) -> Any:
            self.paths.append(request.url.path)
            return await call_next(request)

        @app.get(ABOUT)
        def about() -> dict[str, Any]:
            facts = {"holds": self.held, "version": self.version, "started": self.started}
            return {**facts, "world_size": self.size}

        @app.post(HOLD)
        def hold() -> None:
            self.held = True

        @app.post("/collective_rpc")
        async def collective_rpc(body: dict[str, Any]) -> None:
            await app.state.engine_client.collective_rpc(body["method"])

        api_router.attach_router(app)
        return app


class Engine:
    """An engine that does with its workers what vLLM's does."""

    from vllm.v1.engine.async_llm import AsyncLLM

    init_weight_transfer_engine = AsyncLLM.init_weight_transfer_engine
    start_weight_update = AsyncLLM.start_weight_update
    update_weights = AsyncLLM.update_weights
    finish_weight_update = AsyncLLM.finish_weight_update

    def __init__(self, server: VLLM) -> None:
        self.server = server

    async def collective_rpc(self, method: str, kwargs: dict[str, Any] | None = None) -> None:
        import asyncio

        calls = [getattr(each, method) for each in self.server.workers]
        await asyncio.gather(*(asyncio.to_thread(call, **(kwargs or {})) for call in calls))

    async def update_weight_version(self, new_version: str) -> None:
        self.server.version = new_version

    async def pause_generation(self, *, mode: str, clear_cache: bool, **_: Any) -> None:
        assert mode == "abort" and clear_cache

    async def resume_generation(self) -> None: ...


def worker(rank: int, size: int) -> Any:
    from vllm.config import VllmConfig
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
    from vllm.v1.worker.gpu_worker import Worker

    from grpo.rollout.vllm_folder_transfer import Extension

    class Served(Extension, Worker):
        def __init__(self) -> None:
            self.vllm_config = VllmConfig()
            parallel: Any = SimpleNamespace(rank=rank, world_size=size, data_parallel_index=0)
            own: Any = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(dtype=DTYPE))
            self.model = Model()
            config: Any = None
            engine: Any = NCCLWeightTransferEngine(config, own, torch.device("cpu"), self.model)
            self.weight_transfer_engine = engine
            self._weight_update_active = self._weight_update_is_draft = False
            self.model_runner: Any = SimpleNamespace(reset_lora_state=lambda: None)

    return Served()


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    for name in ("__init__", "broadcast", "destroy"):
        real = inspect.signature(getattr(pynccl.PyNcclCommunicator, name))
        assert [*real.parameters] == [*inspect.signature(getattr(Communicator, name)).parameters]
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Communicator)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda _, number: (stream,) * number)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    # Several of them in a transfer, which has 1.4 MB.
    monkeypatch.setattr(server_transfer, "BUCKET_BYTES", 2**17)


@pytest.fixture
def policy() -> Policy:
    return tiny.policy()


@pytest.fixture
def servers() -> list[VLLM]:
    return [VLLM("http://127.0.0.1:1"), VLLM("http://localhost:2", tensor_parallel_size=2)]


@pytest.fixture
def engine(policy: Policy, servers: list[VLLM]) -> Iterator[ServerEngine]:
    transfer = NcclTransfer(policy, dtype=DTYPE, keeps=True)
    made = ServerEngine(servers, transfer, check=lambda _: None, timeout_s=0.0, max_tries=1)
    yield made
    made.close()


def check_given(servers: Iterable[VLLM], policy: Policy) -> None:
    """Each worker was given the policy's weights last, by name, in the policy's order and in the run's precision."""
    wanted = [*flat(weight_buckets(policy.model, dtype=DTYPE))]
    for given in (each.model.given[-len(wanted) :] for server in servers for each in server.workers):
        assert [name for name, _ in given] == [name for name, _ in wanted]
        assert all(
            a.dtype == b.dtype and torch.equal(a, b) for (_, a), (_, b) in zip(given, wanted, strict=True)
        )


def changed(policy: Policy) -> None:
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(1.0)


UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version"]


def test_all_workers_of_all_servers_get_the_weights_between_pause_and_resume(
    engine: ServerEngine, servers: list[VLLM], policy: Policy
) -> None:
    for first in (True, False):
        for server in servers:
            server.paths.clear()
        engine.sync()
        check_given(servers, policy)
        assert engine.lost == {} and {server.version for server in servers} == {engine.version}
        for server in servers:
            calls = [path for path in server.paths if path != ABOUT]
            init = ["/init_weight_transfer_engine"] if first else []
            assert calls == ["/pause", "/collective_rpc", *init, *UPDATE, "/resume"]
        changed(policy)


def test_a_server_that_fails_among_the_weights_is_left_out_and_gets_them_at_the_next_sync(
    engine: ServerEngine, servers: list[VLLM], policy: Policy
) -> None:
    """The sender waits for it in the middle of the weights, and the next sync begins anew."""
    engine.sync()
    failing, other = servers
    changed(policy)
    # Behind the first weights of the second sync.
    failing.workers[0].model.fails_after = len(failing.workers[0].model.given) + 3
    engine.sync()
    check_given([other], policy)
    assert [*engine.lost] == [failing] and other.version == engine.version != failing.version
    failing.workers[0].model.fails_after = 10**9
    engine.sync()
    check_given(servers, policy)
    assert engine.lost == {} and failing.version == engine.version
    assert failing.paths.count("/init_weight_transfer_engine") == 2
    assert other.paths.count("/init_weight_transfer_engine") == 1


@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_that_fails_as_it_is_connected_is_left_out_and_connected_at_the_next_sync(
    engine: ServerEngine, servers: list[VLLM], policy: Policy, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner, which waits for all workers of a group, does not wait for one that does not come."""
    failing, other = servers
    is_over = threading.Event()

    def init(init_info: dict[str, Any]) -> None:
        if hangs:
            is_over.wait()
        raise RuntimeError("no NCCL here")

    failing.timeout_s = 0.1 if hangs else 60.0
    with monkeypatch.context() as patched:
        patched.setattr(failing.workers[0], "init_weight_transfer_engine", init)
        engine.sync()
    is_over.set()
    check_given([other], policy)
    assert [*engine.lost] == [failing] and other.version == engine.version
    says = "is not connected by NCCL within 0.1 s" if hangs else "refuses /init_weight_transfer_engine: 500"
    assert says in engine.lost[failing]
    failing.timeout_s = 60.0
    engine.sync()
    check_given(servers, policy)
    assert engine.lost == {}


def test_a_server_that_was_started_anew_is_connected_anew(
    engine: ServerEngine, servers: list[VLLM], policy: Policy
) -> None:
    engine.sync()
    servers[1].start()
    engine.sync()
    check_given(servers, policy)
    assert servers[1].held and servers[1].version == engine.version


def test_an_update_that_a_killed_run_began_is_ended(
    engine: ServerEngine, servers: list[VLLM], policy: Policy
) -> None:
    """Else vLLM refuses each that follows: one is active already."""
    servers[0].start_weight_update()
    engine.sync()
    check_given(servers, policy)


def test_a_server_that_has_no_ipv4_address_is_refused(policy: Policy) -> None:
    with pytest.raises(
        ServerError, match=r"http://\[::1\]:8000 has no IPv4 address .*--transfer egogrpo_folder"
    ):
        server_transfer._own_address("http://[::1]:8000")


def test_a_server_on_another_machine_wants_an_interface_that_leads_there() -> None:
    """The processes of one machine keep to its loopback, where no worker of another one can find the learner."""
    loopback = {"NCCL_SOCKET_IFNAME": "lo"}
    for own, other in (("127.0.0.1", "127.0.1.1"), ("10.0.0.1", "10.0.0.1")):
        server_transfer.check_interface("http://here", own, other, loopback)
    server_transfer.check_interface("http://there", "10.0.0.1", "10.0.0.2", {})
    with pytest.raises(ServerError, match="http://there is on another machine: set NCCL_SOCKET_IFNAME"):
        server_transfer.check_interface("http://there", "10.0.0.1", "10.0.0.2", loopback)
