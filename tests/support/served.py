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


@contextmanager
def served(
    model: Path, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server that `egogrpo serve` starts, with a key, until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "grpo.commands", "serve", str(model), "--port", port, *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=tiny.ROOT,
            env={**os.environ, "VLLM_API_KEY": KEY, **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"no server: {log.read_text(errors='replace')[-3000:]}")


def demo_model(folder: Path) -> Path:
    """A copy of the shipped policy alone, which says that it is asked as in the demo."""
    shutil.copytree(tiny.BASE_POLICY, folder)
    ModelInputs.of(load_config([str(tiny.ROOT / "configs" / "demo.yaml")])).write(folder)
    return folder
