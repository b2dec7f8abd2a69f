"""The server that a run starts for itself: its environment, its end, and what is said when it does not start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo.rollout import own_server
from grpo.rollout.own_server import OwnServer, start_server
from grpo.workers.processes import tree
from tests.support import tiny

FAKE = """
import json, multiprocessing, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

# As vLLM does, in both of its processes; the lock needs Python's tracker of shared memory.
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
lock = multiprocessing.get_context("fork").Lock()
engine = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
engine.start()
port = int(sys.argv[sys.argv.index("--port") + 1])
print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}), flush=True)
HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)


def of(started: subprocess.Popen[bytes]) -> OwnServer:
    return OwnServer(url="http://127.0.0.1:1", key="key", process=started, log=Path("server.log"))


def test_a_server_that_does_not_start_is_named_with_its_log() -> None:
    with pytest.raises(ValueError, match="its server has ended with status 3; see server.log"):
        of(process("raise SystemExit(3)")).wait_until_up(60.0)
    slow = of(process("import time; time.sleep(60)"))
    with pytest.raises(ValueError, match="was not up within 0.3 s"):
        slow.wait_until_up(0.3)
    slow.close()
    assert slow.process.poll() == -signal.SIGINT


def test_a_server_that_does_not_listen_to_its_end_is_killed_with_what_it_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_server, "END_WITHIN_S", 0.2)
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    server = of(process(deaf))
    assert server.process.stdout is not None
    below = int(server.process.stdout.readline())
    server.close()
    assert server.process.poll() == -signal.SIGKILL and has_ended(below)


def has_ended(pid: int) -> bool:
    give_up_at = time.monotonic() + 30.0
    while time.monotonic() < give_up_at:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM whose server has an engine beside it, and only says that it is up."""
    module = tmp_path / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, *module.parent.parents[:2]):
        (folder / "__init__.py").touch()
    module.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{tiny.ROOT}")


@pytest.mark.usefixtures("fake")
def test_signals_of_a_scheduler_to_all_processes_end_neither_the_server_nor_what_it_has_started(
    tmp_path: Path,
) -> None:
    server = start_server([], {}, tmp_path / "server.log")
    server.wait_until_up(120.0)
    before = tree(server.process.pid)
    assert len(before) > 1
    for pid in before:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    server.wait_until_up(120.0)
    assert server.problem() is None and tree(server.process.pid) == before
    server.close()
    assert all(map(has_ended, before))


@pytest.mark.usefixtures("fake")
def test_a_server_has_its_key_and_no_place_among_the_runs_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    server = start_server(["--flag"], {"OWN": "yes"}, tmp_path / "server.log")
    server.wait_until_up(120.0)
    said = json.loads(server.log.read_text().splitlines()[0])
    server.close()
    environment = said["environment"]
    assert said["arguments"][:2] == ["--host", "127.0.0.1"] and said["arguments"][-1] == "--flag"
    assert (environment["OWN"], environment["VLLM_API_KEY"]) == ("yes", server.key)
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"} & environment.keys()


def test_a_module_that_is_to_end_with_its_parent_does_so_when_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import sys, time; print(sys.argv[1:], flush=True); time.sleep(60)")
    command = [sys.executable, "-m", "grpo.workers.processes", "sleeps", "an argument"]
    environment = {"PYTHONPATH": f"{tmp_path}:{tiny.ROOT}"}
    parent = process(
        f"import subprocess, time; one = subprocess.Popen({command}, env={environment}, stdout=subprocess.PIPE)\n"
        "print(one.pid, one.stdout.readline().decode(), flush=True); time.sleep(60)"
    )
    assert parent.stdout is not None
    pid, _, arguments = parent.stdout.readline().decode().strip().partition(" ")
    assert arguments == "['an argument']"
    parent.kill()
    assert has_ended(int(pid))
