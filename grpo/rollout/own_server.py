"""A server that a run starts for itself on the same machine (`rollout.engine=vllm_process`), and that ends with it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from grpo.rollout.server_flags import KEY_VARIABLE, LOOPBACK, MODULE
from grpo.workers.processes import kill_group, kill_tree

POLL_S = 0.2
END_WITHIN_S = 8.0
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")
"""How the environment variables begin that are about a process's place among those of the run."""


@dataclass(frozen=True, kw_only=True)
class OwnServer:
    """A server under way, with the key that it asks for."""

    url: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_up(self, timeout_s: float) -> None:
        """Wait until the server answers; raise ValueError if it ends before, or takes too long."""
        give_up_at = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < give_up_at:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            time.sleep(POLL_S)
        raise ValueError(self.problem() or self._line(f"was not up within {timeout_s:g} s"))

    def problem(self) -> str | None:
        """Return a line that says how the server has ended; None while it runs."""
        status = self.process.poll()
        return None if status is None else self._line(f"has ended with status {status}")

    def _line(self, what: str) -> str:
        return f"rollout.engine=vllm_process: its server {what}; see {self.log}"

    def close(self) -> None:
        """End the server and all that it has started."""
        if self.process.poll() is None:
            # As a Ctrl-C in a terminal would; SIGTERM is blocked in all of them (`processes.block_stops`).
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            kill_tree(self.process.pid)
            self.process.wait()
        # A server that was killed has left its engine behind.
        kill_group(self.process.pid)


def start_server(flags: Sequence[str], environment: Mapping[str, str], log: Path) -> OwnServer:
    """Start a server on a free port of the loopback, with a key that nobody else knows."""
    key = secrets.token_hex(16)
    with socket.create_server((LOOPBACK[0], 0)) as free:
        port = free.getsockname()[1]
    where = ["--host", LOOPBACK[0], "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo.workers.processes", MODULE, *where, *flags],
            env={**inherited, **environment, KEY_VARIABLE: key},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal is for the run, which needs the server until its step is finished.
            start_new_session=True,
        )
    return OwnServer(url=f"http://{LOOPBACK[0]}:{port}", key=key, process=process, log=log)
