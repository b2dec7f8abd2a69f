"""The engine of servers, with servers that fail in every way: which groups come, from where, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.groups import Batch, Group, Prompt
from grpo.rollout import Sampling, server_engine, sync_proof
from grpo.rollout.server_client import ServerClient, ServerError, ServerGone
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import RUN_HEADER
from grpo.rollout.sync_proof import SyncProof
from tests.support import tiny

SAMPLING = Sampling(group_size=2, max_new_tokens=4, temperature=1.0)
PROMPTS = [tiny.prompt(tiny.sample(f"s{index}"), None) for index in range(4)]
SEEDS = [0, 1, 2, 3]


class Server(ServerClient):
    """A server without a network, which does as `fails` says with each request for a group."""

    def __init__(self, url: str, fails: Callable[[], object] = lambda: None) -> None:
        super().__init__(url, tiny.family(), timeout_s=1.0, run="run")
        self.fails = fails
        self.is_up, self.loaded, self.holder = True, "default", None
        self.asked: list[Prompt] = []
        self.posted: list[str] = []

    def about(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        if not self.is_up:
            raise ServerGone(f"{self.url} does not answer")
        return {"holds": self.holder == self.run, "version": self.loaded}

    def hold(self) -> None:
        self.holder = self.run

    def post(self, path: str, body: Any = None) -> Any:
        self.posted.append(path)

    def generate(self, prompt: Prompt, sampling: Sampling, seed: int, *, version: str | None = None) -> Group:
        self.asked.append(prompt)
        self.fails()
        if not self.is_up or self.loaded != version:
            raise ServerGone(f"{self.url} has other weights")
        return Group(prompt=prompt, rollouts=(tiny.rollout(prompt, [seed]),) * sampling.group_size)


class Loaded:
    """A transfer that marks the servers that it has loaded."""

    def __init__(self, *, is_beside: bool = True) -> None:
        self.is_beside = is_beside
        self.num_collected = 0

    def collect(self) -> None:
        self.num_collected += 1

    def install(self, server: ServerClient, version: str) -> None:
        assert isinstance(server, Server)
        server.loaded = version

    def differing(self, server: ServerClient) -> list[str]:
        return []

    def close(self) -> None: ...


def engine(*servers: Server, tries: int = 3, timeout_s: float = 0.1) -> ServerEngine:
    made = ServerEngine(servers, Loaded(), check=lambda _: None, timeout_s=timeout_s, max_tries=tries)
    made.sync()
    return made


def raises(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def samples(groups: Sequence[Group]) -> list[str]:
    return [group.prompt.sample.id for group in groups]


def test_groups_come_in_the_order_of_their_prompts_and_each_is_told_of_once() -> None:
    servers = [Server("a"), Server("b")]
    told: list[Group] = []
    groups = engine(*servers).generate(PROMPTS, SAMPLING, SEEDS, on_group=told.append)
    assert samples(groups) == ["s0", "s1", "s2", "s3"]
    assert sorted(map(id, told)) == sorted(map(id, groups))
    assert [group.rollouts[0].token_ids for group in groups] == [(0,), (1,), (2,), (3,)]
    assert len(servers[0].asked) + len(servers[1].asked) == 4
    assert engine(*servers).generate([], SAMPLING, []) == []


def test_the_groups_that_a_dead_server_is_at_are_sampled_by_another() -> None:
    dead, other = Server("dead"), Server("other")
    dead.fails = raises(ServerGone("dead does not answer"))
    made = engine(dead, other)
    assert samples(made.generate(PROMPTS, SAMPLING, SEEDS)) == ["s0", "s1", "s2", "s3"]
    assert [*made.lost.values()] == ["dead does not answer"] and len(other.asked) == 4
    dead.asked.clear()
    made.generate(PROMPTS, SAMPLING, SEEDS)
    assert dead.asked == []  # until the next sync
    dead.fails = lambda: None
    made.sync()
    assert made.lost == {} and dead.loaded == other.loaded == made.version


def test_a_server_that_was_started_anew_gets_the_weights_again_in_the_middle_of_a_step() -> None:
    server = Server("only")
    made = engine(server, timeout_s=5.0)
    server.loaded, server.holder = "default", None
    assert samples(made.generate(PROMPTS, SAMPLING, SEEDS)) == ["s0", "s1", "s2", "s3"]
    assert server.loaded == made.version and server.holder == "run"
    assert isinstance(made.transfer, Loaded) and made.transfer.num_collected == 1


def test_what_no_server_samples_is_left_out_and_counted_as_lost() -> None:
    server = Server("only")
    made = engine(server)
    server.is_up = False
    groups = made.generate(PROMPTS, SAMPLING, SEEDS)
    assert groups == []
    batch = Batch(prompts=tuple(PROMPTS), seeds=(0, 1, 2, 3), places=(0, 1, 2, 3), lost=())
    left = batch.answered(groups)
    assert (left.prompts, left.seeds, left.places) == ((), (), ())
    assert [(lost.sample_id, lost.reason) for lost in left.lost] == [
        (f"s{index}", "no server sampled its group") for index in range(4)
    ]
    with pytest.raises(ServerError, match="rollout.servers: none is left: only does not answer"):
        made.sync()


def test_all_groups_and_the_next_sync_wait_once_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server, now_s = Server("only"), [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr(server_engine, "MAX_IN_FLIGHT", 1)
    monkeypatch.setattr(
        server_engine, "time", SimpleNamespace(monotonic=lambda: 100.0 + now_s[0], sleep=sleep)
    )
    made = engine(server, timeout_s=10.0)
    server.is_up = False
    assert made.generate(PROMPTS, SAMPLING, SEEDS) == []
    with pytest.raises(ServerError, match="none is left"):
        made.sync()
    assert 10.0 < now_s[0] < 12.0


def test_weights_that_are_proven_wrong_end_the_run_though_the_server_can_not_tell_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(Server("only"))
    monkeypatch.setattr(made.transfer, "differing", raises_gone)
    monkeypatch.setattr(sync_proof, "logps_of", lambda *_: torch.full((sync_proof.NUM_COMPLETIONS,), -9.0))
    proof = SyncProof(policy=tiny.policy(), prompt=PROMPTS[0], dtype=torch.float32, max_gap=0.1, every=1)
    with pytest.raises(RuntimeError, match="which weights differ can't be told"):
        made._prove(made.clients[0], proof)


def raises_gone(server: ServerClient) -> list[str]:
    raise ServerGone(f"{server.url} refuses /collective_rpc: 500")


def test_a_server_that_comes_back_in_another_way_is_left_out_and_the_last_one_ends_the_run() -> None:
    """Started anew with another model, or another key; nobody waits for one that answers so."""
    other, wrong = Server("other"), Server("wrong")
    made = engine(other, wrong, timeout_s=600.0)
    made.check = raises_other_model
    wrong.holder = None
    made.sync()
    assert [*made.lost.values()] == ["wrong has another model"]
    assert len(made.generate(PROMPTS, SAMPLING, SEEDS)) == 4 and wrong.asked == []
    other.holder = None
    with pytest.raises(ServerError, match="none is left: other has another model; wrong has another model"):
        made.sync()


def test_a_server_that_is_being_started_anew_is_waited_for_though_another_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starting, wrong = Server("starting"), Server("wrong")
    made = engine(starting, wrong, timeout_s=600.0)
    made.check = lambda client: raises_other_model(client) if client is wrong else None
    starting.is_up, wrong.holder = False, None
    monkeypatch.setattr(server_engine.time, "sleep", lambda _: setattr(starting, "is_up", True))
    made.sync()
    assert [*made.lost.values()] == ["wrong has another model"] and starting.loaded == made.version


def raises_other_model(server: ServerClient) -> None:
    raise ServerError(f"{server.url} has another model")


def test_a_server_that_was_left_paused_behind_its_last_weight_goes_on() -> None:
    server = Server("only")
    made = engine(server, timeout_s=5.0)
    made.lost[server] = "resume took too long"
    server.posted.clear()
    assert len(made.generate(PROMPTS, SAMPLING, SEEDS)) == 4 and server.posted == ["/resume"]


def test_a_run_whose_own_server_has_ended_does_not_wait_for_it_and_says_what_it_was() -> None:
    server = Server("only")
    made = engine(server, timeout_s=600.0)
    server.is_up = False
    made.own = ended = SimpleNamespace(problem=lambda: "its server has ended", log="server.log")  # pyright: ignore
    assert made.generate(PROMPTS, SAMPLING, SEEDS) == []
    with pytest.raises(ServerError, match=r"^its server has ended$"):
        made.sync()
    ended.problem, made.timeout_s = lambda: None, 0.1
    with pytest.raises(
        ServerError, match="^rollout.engine=vllm_process: its server fails: .*; see server.log"
    ):
        made.sync()


def test_weights_that_go_from_gpu_to_gpu_are_not_sent_during_an_update() -> None:
    server = Server("only")
    for overlap, num_groups in ((True, 0), (False, 4)):
        made = engine(server)
        made.transfer, made.overlap = Loaded(is_beside=False), overlap
        server.loaded = "default"
        assert len(made.generate(PROMPTS, SAMPLING, SEEDS)) == num_groups
        made.sync()
        assert len(made.generate(PROMPTS, SAMPLING, SEEDS)) == 4


def test_what_the_run_alone_knows_is_no_part_of_what_is_told_of_it() -> None:
    client = ServerClient("http://x", tiny.family(), timeout_s=1.0, run="runs/k\u00fcche#secret")
    assert client.http.headers[RUN_HEADER] == "runs/k%C3%BCche#secret"
    made = engine(Server("only"))
    made.clients = [client]
    assert made.version.startswith("runs/k%C3%BCche#") and made.version.isascii()
    assert "secret" not in made.version


def test_a_batch_keeps_the_places_and_seeds_of_what_was_answered() -> None:
    batch = Batch(prompts=tuple(PROMPTS), seeds=(7, 8, 9, 6), places=(0, 2, 3, 5), lost=())
    groups = [Group(prompt=PROMPTS[index], rollouts=()) for index in (1, 3)]
    left = batch.answered(groups)
    assert (left.seeds, left.places, samples(groups)) == ((8, 6), (2, 5), ["s1", "s3"])
    assert [lost.sample_id for lost in left.lost] == ["s0", "s2"]
    assert batch.answered([Group(prompt=prompt, rollouts=()) for prompt in PROMPTS]) is batch


def test_a_group_is_given_to_so_many_servers_and_no_more() -> None:
    servers = [Server(name, raises(ServerGone("gone"))) for name in "abcd"]
    made = engine(*servers, tries=2)
    assert made.generate(PROMPTS[:1], SAMPLING, SEEDS[:1]) == []
    assert sum(len(server.asked) for server in servers) == 2


def test_a_refusal_that_is_the_runs_own_fault_ends_it() -> None:
    server = Server("a", raises(ServerError("a refuses: the prompt is too long")))
    with pytest.raises(ServerError, match="too long"):
        engine(server, Server("b")).generate(PROMPTS, SAMPLING, SEEDS)
