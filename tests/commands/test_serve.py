"""How a server is started; what it does then is in tests/rollout/test_servers.py."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.commands import serve
from tests.support import grown, tiny
from tests.support.served import KEY, demo_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model(tmp_path_factory.mktemp("moved") / "final")


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


def test_a_server_for_training_is_told_how_weights_come(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main([str(model), "--for-training", "--transfer", "nccl", "--print"]) == 0
    shown = capsys.readouterr().out
    assert "VLLM_SERVER_DEV_MODE=1" in shown and '--weight-transfer-config \'{"backend": "nccl"}\'' in shown
    assert serve.main([str(model), "--print"]) == 0
    shown = capsys.readouterr().out
    assert "DEV_MODE" not in shown and "weight-transfer" not in shown


def test_a_server_of_a_model_with_codes_is_told_their_rules(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, has_rules in {model: False, grown.model(): True}.items():
        assert serve.main([str(folder), "--for-training", "--print"]) == 0
        shown = capsys.readouterr().out
        assert ("--logits-processors grpo.rollout.vllm_codes:CodeRules" in shown) == has_rules


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


def test_an_address_is_not_given_behind_the_commands_back(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--host", "--host=0.0.0.0", "--hos", "--port"):
        assert f"{flag} has to stand before --" in said([str(model), "--", flag, "0.0.0.0"], capsys)


def test_a_server_that_a_run_steers_always_has_a_key(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(serve.os, "execve", lambda _, __, environment: started.append(environment))
    arguments = [str(model), "--for-training", "--port", "0"]
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    serve.main(arguments)
    serve.main(arguments)
    printed = capsys.readouterr().err.splitlines()
    assert [line.rpartition("VLLM_API_KEY=")[2] for line in printed] == [e["VLLM_API_KEY"] for e in started]
    assert len({*printed}) == 2
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    serve.main(arguments)
    assert started[-1]["VLLM_API_KEY"] == KEY and capsys.readouterr().err == ""


def test_a_model_that_is_not_whole_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert "pointer of git-lfs" in said([str(broken)], capsys)
    assert "no model folder" in said([str(tmp_path / "none")], capsys)


@pytest.mark.slow
def test_the_command_ends_in_one_line_where_vllm_is_told_nonsense(model: Path) -> None:
    command = [sys.executable, "-m", "grpo.commands", "serve", str(model), "media.max_frams=4"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "no setting media.max_frams" in done.stderr
    )
