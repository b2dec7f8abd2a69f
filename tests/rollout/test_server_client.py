"""A client of a server over a real connection: what it takes for an answer, and which servers a run refuses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from grpo.config.load import load_config
from grpo.groups import Group
from grpo.rollout import server_check, server_engine
from grpo.rollout.server_check import differences
from grpo.rollout.server_client import ServerClient, ServerError, ServerGone
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import FOLDER, vllm_version
from grpo.startup import assembly
from grpo.startup.servers import check_servers
from tests.rollout.test_server_engine import PROMPTS, SAMPLING, Loaded, Server
from tests.support import runs, tiny


@contextmanager
def answering(
    status: int, body: dict[str, Any], headers: dict[str, str] | None = None, *, dies_after: float = 1.0
) -> Iterator[str]:
    """The address of a server that gives every request the same answer; status 0: it closes the connection.

    dies_after: the share of the answer after which the connection ends.
    """
    text = json.dumps(body).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            own = {"Content-Type": "application/json", "Content-Length": str(len(text))}
            for name, value in (own | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text[: int(dies_after * len(text))])

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_being_sampled_can_be_cancelled_though_the_server_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ServerClient, "hold", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        client = ServerClient(
            f"http://127.0.0.1:{silent.getsockname()[1]}", tiny.family(), timeout_s=600.0, key="key"
        )
        engine = ServerEngine([client], Loaded(), check=lambda _: None, timeout_s=600.0, max_tries=3)
        asked = pool.submit(engine.generate, PROMPTS[:2], SAMPLING, [0, 1])
        connections = [silent.accept()[0] for _ in range(2)]
        assert all(each.recv(1) for each in connections)
        engine.cancel()
        with pytest.raises(ServerError, match="not needed any more"):
            asked.result(timeout=60)
        # Nor does one that is made later wait for the server.
        with pytest.raises(ServerGone):
            client.about()
        engine.close()
        for each in connections:
            each.close()


def test_a_refusal_ends_the_run_though_another_request_is_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = Server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        refusing, connections = Server("refusing"), list[socket.socket]()
        made = ServerEngine([slow, refusing], Loaded(), check=lambda _: None, timeout_s=600.0, max_tries=1)
        made.sync()
        slow.generate = partial(ServerClient.generate, slow)  # pyright: ignore[reportAttributeAccessIssue]
        slow.post = partial(ServerClient.post, slow)  # pyright: ignore[reportAttributeAccessIssue]
        slow.http.timeout = httpx.Timeout(600.0)

        def refuse() -> None:
            connections.append(silent.accept()[0])
            assert connections[0].recv(1)
            raise ServerError("the prompt is too long")

        refusing.fails = refuse
        with pytest.raises(ServerError, match="the prompt is too long"):
            made.generate(PROMPTS[:2], SAMPLING, [0, 1])
        connections[0].close()


def test_the_groups_that_a_server_is_at_as_it_is_told_to_end_are_sampled_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_engine, "WATCH_S", 0.05)
    listening = socket.create_server(("127.0.0.1", 0))
    with ThreadPoolExecutor(1) as pool:
        ending = Server(f"http://127.0.0.1:{listening.getsockname()[1]}")
        ending.generate = partial(ServerClient.generate, ending)  # pyright: ignore[reportAttributeAccessIssue]
        ending.post = partial(ServerClient.post, ending)  # pyright: ignore[reportAttributeAccessIssue]
        ending.http.timeout = httpx.Timeout(600.0)
        servers = [ending, other := Server("other")]
        engine = ServerEngine(servers, Loaded(), check=lambda _: None, timeout_s=600.0, max_tries=3)
        other.loaded = engine.version
        asked = pool.submit(engine.generate, PROMPTS[:2], SAMPLING, [0, 1])
        connection, _ = listening.accept()
        assert connection.recv(1) and not asked.done()
        # It takes no connections any more, and never answers those that it has.
        listening.close()
        assert len(asked.result(timeout=60)) == 2
        assert [*engine.lost] == [ending] and len(other.asked) == 2
        connection.close()


def test_a_server_that_hangs_holds_up_the_syncs_no_longer_once_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_engine, "LOST_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = Server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        made = ServerEngine(
            [hanging, Server("other")], Loaded(), check=lambda _: None, timeout_s=600.0, max_tries=3
        )
        made.lost[hanging] = "timed out"
        hanging.about = partial(ServerClient.about, hanging)
        hanging.http.timeout = httpx.Timeout(600.0)
        made.sync()
        assert [*made.lost] == [hanging] and "timed out" in made.lost[hanging]
        made.close()


def choice(index: int, token_ids: list[int], logprobs: list[float]) -> dict[str, Any]:
    content = [{"logprob": value} for value in logprobs]
    return {
        "index": index,
        "token_ids": token_ids,
        "finish_reason": "length",
        "logprobs": {"content": content},
    }


ANSWER = {
    "prompt_token_ids": [*PROMPTS[0].token_ids],
    "choices": [choice(1, [6], [-2.0]), choice(0, [5, 7], [-1.0, -0.5])],
}


def ask(url: str) -> Group:
    client = ServerClient(url, tiny.family(), timeout_s=5.0, run="run")
    try:
        return client.generate(PROMPTS[0], SAMPLING, 0, version="v2")
    finally:
        client.close()


def test_token_ids_and_log_probs_are_the_servers() -> None:
    with answering(200, ANSWER, {"x-egogrpo-weights": "v2"}) as url:
        group = ask(url)
    assert [rollout.token_ids for rollout in group.rollouts] == [(5, 7), (6,)]
    assert [rollout.logprobs for rollout in group.rollouts] == [(-1.0, -0.5), (-2.0,)]
    assert not group.rollouts[0].stopped


@pytest.mark.parametrize(
    ("status", "version", "says", "kind"),
    [
        (0, "v2", "does not answer", ServerGone),
        (200, "v1", "sampled from the weights 'v1'", ServerGone),
        (200, "v1 to v2", "sampled from the weights 'v1 to v2'", ServerGone),
        (500, "v2", "500 out of memory", ServerGone),
        (409, "v2", "409 out of memory", ServerGone),
        (400, "v2", "400 out of memory", ServerError),
        (401, "v2", "wants a key: set VLLM_API_KEY", ServerError),
        (404, "v2", "with the flags that egogrpo serve --print shows", ServerError),
    ],
)
def test_an_answer_that_is_none_is_told_apart(
    status: int, version: str, says: str, kind: type[ServerError]
) -> None:
    """Only of a server that is gone may another one be asked the same."""
    body = ANSWER if status == 200 else {"error": {"message": "out of\nmemory"}}
    with answering(status, body, {"x-egogrpo-weights": version}) as url:
        with pytest.raises(ServerError) as caught:
            ask(url)
        assert type(caught.value) is kind and says in str(caught.value) and url in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_answer_that_ends_in_its_middle_is_none() -> None:
    """As that of a server that is killed."""
    with (
        answering(200, ANSWER, {"x-egogrpo-weights": "v2"}, dies_after=0.5) as url,
        pytest.raises(ServerGone, match="does not answer"),
    ):
        ask(url)


@pytest.mark.parametrize("reason", ["abort", "repetition", None])
def test_completions_that_a_server_broke_off_are_none(reason: str | None) -> None:
    """As those of a server that is told to end, or to pause."""
    broken = [choice(0, [5], [-1.0]), choice(1, [6], [-2.0]) | {"finish_reason": reason}]
    with (
        answering(200, ANSWER | {"choices": broken}, {"x-egogrpo-weights": "v2"}) as url,
        pytest.raises(ServerGone, match=f"{url} broke a completion off: {reason}"),
    ):
        ask(url)


def test_a_server_that_takes_too_long_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ServerClient(
            f"http://127.0.0.1:{silent.getsockname()[1]}", tiny.family(), timeout_s=0.1, run="r"
        )
        with pytest.raises(ServerGone, match="does not answer: timed out"):
            client.generate(PROMPTS[0], SAMPLING, 0)
        client.close()


def about(**changed: Any) -> dict[str, Any]:
    """What a server of the run's model says of itself."""
    fits = {
        "vllm": vllm_version(),
        "dtype": "float32",
        "head_dtype": "float32",
        "logprobs_mode": "processed_logprobs",
        "max_model_tokens": 256,
        "max_clip_tokens": 200,
        "transfer": FOLDER,
        "device": "cpu",
        "config": tiny.family().config.to_dict(),
    }
    return fits | changed


def of_other_shape() -> dict[str, Any]:
    config = tiny.family().config.to_dict()
    config["text_config"]["intermediate_size"] += 8
    return config


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vllm": "0.30.1"}, f"has vllm 0.30.1, the run {vllm_version()}"),
        ({"dtype": "float16"}, "has dtype float16, the run float32"),
        ({"max_model_tokens": 128}, "has max_model_tokens 128, the run 256"),
        ({"max_clip_tokens": 1}, "has max_clip_tokens 1, the run [0-9]{2,3}$"),
        ({"logprobs_mode": "raw_logprobs"}, "has logprobs_mode raw_logprobs, the run processed_logprobs"),
        ({"code_rules": "5eed"}, "has code_rules 5eed, the run None"),
        ({"transfer": None}, "takes no weights: start it with egogrpo serve --for-training"),
        ({"config": {"model_type": "qwen2_vl"}}, "all: it is a 'qwen2_vl' model, the policy a 'qwen2_5_vl'"),
        (
            {"config": of_other_shape()},
            r"layers.0.mlp.down_proj.weight is \(128, 392\) there and \(128, 384\) here",
        ),
    ],
)
def test_a_server_that_does_not_fit_is_told_by_what(changed: dict[str, Any], says: str) -> None:
    with answering(200, about(**changed)) as url:
        config = load_config([runs.SMALL[0], "rollout.engine=vllm_server", f"rollout.servers=[{url}]"])
        with pytest.raises(ServerError, match=rf"^{url} (?s:.)*{says}"):
            check_servers(config, tiny.family())


def test_a_learner_without_vllm_is_told_at_the_start_how_servers_take_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_check, "vllm_version", lambda: None)
    with answering(200, about(transfer="nccl", vllm="0.30.1")) as url:
        config = load_config([runs.SMALL[0], "rollout.engine=vllm_server", f"rollout.servers=[{url}]"])
        with pytest.raises(ServerError, match=f"^{url} takes weights by nccl, .*--transfer egogrpo_folder$"):
            check_servers(config, tiny.family())


@pytest.mark.parametrize("key", ["secret\n", "sec\rret", " secret", "s\u00e9cret"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ServerError, match="VLLM_API_KEY has a character that no header may have") as caught:
        ServerClient("http://127.0.0.1:1", tiny.family(), timeout_s=1.0, key=key)
    assert "cret" not in str(caught.value)


def test_what_answers_with_a_page_is_no_server() -> None:
    with answering(200, {}, {"Content-Type": "text/html"}) as url:
        client = ServerClient(url, tiny.family(), timeout_s=5.0)
        with pytest.raises(ServerError, match=f"{url} is no server that egogrpo serve has started"):
            client.about()
        client.close()


def test_models_of_one_kind_and_other_shapes_are_told_apart() -> None:
    other = tiny.family().config.to_dict()
    assert differences(tiny.family(), other) == []
    text = other["text_config"]
    text["intermediate_size"] += 8
    found = differences(tiny.family(), other)
    size, hidden = text["intermediate_size"], text["hidden_size"]
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert f"{name} is {(size, hidden)} there and {(size - 8, hidden)} here" in found
    assert len(found) == 3 * text["num_hidden_layers"]


def test_a_server_without_a_grown_models_rules_is_refused() -> None:
    with tiny.of_family("qwen2_5_vl_grown"):
        rules = tiny.family().vocabulary
        assert rules is not None
        for has, says in {
            None: f"has code_rules None, the run {rules.identity}",
            rules.identity: None,
        }.items():
            with answering(200, about(code_rules=has)) as url:
                config = load_config(
                    [runs.SMALL[0], "rollout.engine=vllm_server", f"rollout.servers=[{url}]"]
                )
                if says is None:
                    check_servers(config, tiny.family())
                    continue
                with pytest.raises(ServerError, match=says):
                    check_servers(config, tiny.family())


def test_a_run_with_a_server_of_another_model_ends_before_its_own_is_loaded(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_policy(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(assembly, "load_policy", load_policy)
    with answering(200, about(config=of_other_shape())) as url:
        with pytest.raises(SystemExit, match="has another model; 12 weights differ: model.language_model"):
            runs.run(tmp_path, clips, "rollout.engine=vllm_server", f"rollout.servers=[{url}]")
        runs.reset_process_state()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt_token_ids": [1, 2]}, "expanded the prompt to 2 tokens"),
        ({"choices": [choice(0, [5], [float("nan")])]}, "log-probs are not finite"),
        ({"choices": [choice(0, [5, 6], [-1.0])]}, "1 log-probs for 2 tokens"),
    ],
)
def test_an_answer_that_can_not_be_trained_on_stops_the_run(changed: dict[str, Any], says: str) -> None:
    with (
        answering(200, ANSWER | changed, {"x-egogrpo-weights": "v2"}) as url,
        pytest.raises(ValueError, match=says) as caught,
    ):
        ask(url)
    assert not isinstance(caught.value, ServerGone) and "sample s0" in str(caught.value)
