"""A model behind a real vLLM server, in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from grpo.config.load import load_config
from grpo.run.model_inputs import ModelInputs
from tests.support import tiny
from tests.support.launched import free_port

KEY = "a-key-of-the-tests"
START_S = 400.0


class Served:
    """A server that `egogrpo serve` starts, with a key, on a port that stays its own when it is started anew."""

    def __init__(
        self, model: Path, port: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = [
            sys.executable,
            "-m",
            "grpo.commands",
            "serve",
            str(model),
            "--port",
            port,
            *arguments,
        ]
        self.environment = {**os.environ, "VLLM_API_KEY": KEY, **(environment or {})}
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command,
                cwd=tiny.ROOT,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when the server answers."""
        assert self.process is not None
        give_up_at = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < give_up_at:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(f"no server: {self.log.read_text(errors='replace')[-3000:]}")

    def end(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """End all of the server's processes, or give the first one a sign to; return when it has ended."""
        if self.process is None:
            return
        if sign == signal.SIGKILL:
            os.killpg(self.process.pid, sign)
        else:
            self.process.send_signal(sign)
        self.process.wait()
        self.process = None


@contextmanager
def served(
    model: Path, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server until the block ends."""
    server = Served(model, free_port(), *arguments, log=log, environment=environment)
    try:
        server.start()
        server.wait()
        yield server.url
    finally:
        server.end()


def demo_model(folder: Path) -> Path:
    """A copy of the shipped policy alone, which says that it is asked as in the demo."""
    shutil.copytree(tiny.BASE_POLICY, folder)
    ModelInputs.of(load_config([str(tiny.ROOT / "configs" / "demo.yaml")])).write(folder)
    return folder
