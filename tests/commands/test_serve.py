"""A model behind a real vLLM server: the flags, the guard at its door, and that it answers as in training."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from grpo.commands import ask, serve
from grpo.policy.families.prompt_text import user_text
from grpo.run.model_inputs import read_inputs
from tests.support import tiny
from tests.support.served import KEY, demo_model, served
from tests.support.videos import write_video

QUESTION = "Which object does the hand take?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder alone, whose generation config asks for what its training did not have."""
    folder = demo_model(tmp_path_factory.mktemp("moved") / "final")
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"repetition_penalty": 5.0, "top_k": 1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert serve.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_the_flags_are_shown(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([str(model), "media.max_frames=8", "--print", "--", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "--generation-config vllm --" in shown and "--logprobs-mode processed_logprobs --" in shown
    assert "--host 127.0.0.1" in shown and "--max-model-len 256" in shown and '"max_frames": 8' in shown
    assert shown.endswith("--seed 3\n") and KEY not in shown


def test_a_port_in_use_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} on 127.0.0.1: Address already in use" in said(
            [str(model), "--port", str(port)], capsys
        )


def test_a_server_for_other_machines_wants_a_key(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert "wants a key: set VLLM_API_KEY" in said([str(model), "--host", "0.0.0.0"], capsys)


def test_a_model_that_is_not_whole_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert "pointer of git-lfs" in said([str(broken)], capsys)
    assert "no model folder" in said([str(tmp_path / "none")], capsys)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("log") / "server.log"
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        served(model, log=log) as url,
        httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_video(tmp_path_factory.mktemp("videos") / "numbers.mp4"))


def completion(server: httpx.Client, video: Path, model: Path, **settings: Any) -> dict[str, Any]:
    """What the OpenAI API answers about an mp4, asked in the words of the training."""
    of = tiny.sample(question=QUESTION, options=("red", "green"))
    wording = read_inputs(str(model)).wording
    text = user_text(of, template=wording["template"], option=wording["option"], tags=wording["tags"])
    url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
    question = {"model": str(model), "messages": [{"role": "user", "content": content}], "max_tokens": 24}
    answer = server.post("/v1/chat/completions", json=question | settings)
    assert answer.is_success, answer.text
    return answer.json()["choices"][0]


@pytest.mark.slow
def test_all_but_the_health_needs_the_key(server: httpx.Client) -> None:
    def status(path: str, **options: Any) -> int:
        return httpx.get(server.base_url.join(f"/{path}"), trust_env=False, **options).status_code

    assert status("health") == 200
    wrong = {"Authorization": "Bearer another"}
    for path in ("v1/models", "metrics", "version", "load", "openapi.json"):
        assert (status(path), status(path, headers=wrong)) == (401, 401), path
        assert server.get(f"/{path}").is_success, path


@pytest.mark.slow
def test_what_a_server_answers_is_what_the_model_answers_here(
    server: httpx.Client,
    model: Path,
    video: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    arguments = [str(model), str(video), QUESTION, "--option", "red", "--option", "green", "--json"]
    assert ask.main(arguments) == 0
    assert ask.main([*arguments, "--server", str(server.base_url)]) == 0
    here, there = map(json.loads, capsys.readouterr().out.splitlines())
    assert here == there
    # An OpenAI client sends the file itself, and the server samples it as in training.
    assert completion(server, video, model, temperature=0.0)["message"]["content"] == here["text"]
    monkeypatch.delenv("VLLM_API_KEY")
    assert ask.main([*arguments, "--server", str(server.base_url)]) == 1
    assert "wants a key: set VLLM_API_KEY" in capsys.readouterr().err


@pytest.mark.slow
def test_the_models_generation_config_does_not_leak_into_answers(
    server: httpx.Client, model: Path, video: Path
) -> None:
    """With its top-k of 1, every token would have a log-prob of 0."""
    steps = completion(server, video, model, temperature=1.0, seed=1, logprobs=True)["logprobs"]["content"]
    assert min(step["logprob"] for step in steps) < -0.01


@pytest.mark.slow
def test_a_video_that_can_not_be_read_is_refused(server: httpx.Client, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(AssertionError, match="cannot be read as a video"):
        completion(server, broken, model)


@pytest.mark.slow
def test_the_command_ends_in_one_line_where_vllm_is_told_nonsense(model: Path) -> None:
    command = [sys.executable, "-m", "grpo.commands", "serve", str(model), "media.max_frams=4"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "no setting media.max_frams" in done.stderr
    )
