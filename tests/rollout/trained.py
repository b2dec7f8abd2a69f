"""The demo through one engine after another, and through servers that are killed while it trains.

    python -m tests.rollout.trained [--steps 50] [--engines vllm,two_servers] [--kills]

Prints JSON, of each engine: held-out scores before and after, the largest mean difference of log-probs between engine
and learner, the groups that were lost, and seconds. With `--kills`, one of two servers is killed in the middle of its
generation and started anew, then told to end, then both are killed: what that cost. A few minutes an engine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from grpo.run.folder import read_rows
from tests.support import tiny
from tests.support.launched import environment, free_port, run_in_two
from tests.support.served import KEY, Served, demo_model

HELD_OUT = ("accuracy", "sampled/accuracy", "sampled/format", "sampled/keyframe")
TIMEOUT_S = 1400.0
ROOM = "rollout.max_model_tokens=256"
KILLS: Sequence[tuple[str, signal.Signals, tuple[int, ...]]] = (
    ("one of two, killed", signal.SIGKILL, (0,)),
    ("one of two, told to end", signal.SIGTERM, (1,)),
    ("both, killed", signal.SIGKILL, (0, 1)),
)


def settings(run_dir: Path, steps: int, *more: str) -> list[str]:
    """The demo's arguments, for so many steps; the engine is vLLM in process, if nothing else is said."""
    own = [
        f"run_dir={run_dir}",
        f"num_steps={steps}",
        f"eval.every_steps={steps}",
        "checkpoint.every_steps=0",
    ]
    return ["grpo/train.py", "configs/demo.yaml", *own, *more]


def through(servers: Sequence[Served]) -> list[str]:
    urls = ",".join(server.url for server in servers)
    return ["rollout.engine=vllm_server", f"rollout.servers=[{urls}]", "rollout.server_timeout_s=300"]


def in_one(run_dir: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """The demo, started in a process of its own."""
    command = [sys.executable, *settings(run_dir, steps, *more)]
    with run_dir.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, cwd=tiny.ROOT, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    if process.wait(TIMEOUT_S):
        raise AssertionError(run_dir.with_suffix(".log").read_text(errors="replace")[-3000:])


def alone(*more: str) -> Callable[[Path, int, ExitStack], None]:
    def train(run_dir: Path, steps: int, _: ExitStack) -> None:
        finish(in_one(run_dir, steps, *more), run_dir)

    return train


def in_two(run_dir: Path, steps: int, _: ExitStack) -> None:
    run_in_two(
        settings(run_dir, steps),
        environment("multi_gpu", run_dir.parent),
        run_dir.parent,
        timeout_s=TIMEOUT_S,
    )


def with_servers(number: int, *more: str) -> Callable[[Path, int, ExitStack], None]:
    def train(run_dir: Path, steps: int, stack: ExitStack) -> None:
        servers = started(number, run_dir.parent, stack)
        finish(in_one(run_dir, steps, *through(servers), *more), run_dir)

    return train


ENGINES: dict[str, Callable[[Path, int, ExitStack], None]] = {
    "transformers": alone("rollout.engine=transformers"),
    "vllm": alone(),
    "vllm_in_two_processes": in_two,
    "server": with_servers(1),
    "process": alone("rollout.engine=vllm_process"),
    "process_overlap": alone("rollout.engine=vllm_process", "rollout.overlap=true"),
    "two_servers": with_servers(2),
    "server_overlap": with_servers(1, "rollout.overlap=true"),
    "two_servers_overlap": with_servers(2, "rollout.overlap=true"),
}


def started(number: int, folder: Path, stack: ExitStack) -> list[Served]:
    """So many servers of the shipped policy, each on a port of its own."""
    model = demo_model(folder / "model")
    servers = [
        Served(model, free_port(), "--for-training", ROOM, log=folder / f"server_{index}.log")
        for index in range(number)
    ]
    for server in servers:
        stack.callback(server.end)
        server.start()
    for server in servers:
        server.wait()
    return servers


def figures(run_dir: Path) -> dict[str, Any]:
    rows = read_rows(run_dir / "metrics.jsonl")
    scores = [row for row in rows if "eval/heldout/accuracy" in row]
    before, after = (
        {name: row[f"eval/heldout/{name}"] for name in HELD_OUT} for row in (scores[0], scores[-1])
    )
    return {
        "before": before,
        "after": after,
        "largest_gap_mean": max(row.get("sampler/gap_mean", 0.0) for row in rows),
        "groups_lost": sum(row.get("groups/lost", 0) for row in rows),
        "steps": rows[-1]["step"],
    }


def kills(folder: Path, steps: int) -> dict[str, Any]:
    """Train through two servers that are killed and started anew; the steps have to outlast that."""
    run_dir, done = folder / "run", list[dict[str, Any]]()
    with ExitStack() as stack:
        servers = started(2, folder, stack)
        process = in_one(run_dir, steps, *through(servers))
        stack.callback(process.kill)
        for name, sign, which in KILLS:
            # In a step after that in which the last one came back.
            wait_for_step(run_dir, last_step(run_dir) + 2, process)
            victims = [servers[index] for index in which]
            running = wait_until_busy(victims[0], process)
            at_step = last_step(run_dir) + 1
            for victim in victims:
                victim.end(sign)
            down_s = perf_counter()
            for victim in victims:
                victim.start()
            for victim in victims:
                victim.wait()
            down_s = perf_counter() - down_s
            done.append(
                {"what": name, "in_step": at_step, "completions_at_work": running, "down_s": round(down_s)}
            )
            print(json.dumps(done[-1]), file=sys.stderr, flush=True)
        finish(process, run_dir)
    rows = {row["step"]: row for row in read_rows(run_dir / "metrics.jsonl")}
    for each in done:
        each["groups_lost"] = rows[each["in_step"]].get("groups/lost", 0)
    return {"kills": done, **figures(run_dir)}


def last_step(run_dir: Path) -> int:
    rows = read_rows(run_dir / "metrics.jsonl")
    return rows[-1]["step"] if rows else -1


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while last_step(run_dir) < step:
        if process.poll() is not None:
            raise AssertionError(run_dir.with_suffix(".log").read_text(errors="replace")[-3000:])
        time.sleep(0.2)


def wait_until_busy(server: Served, process: subprocess.Popen[bytes]) -> float:
    """Return the number of completions that a server decodes, as soon as it does."""
    headers = {"Authorization": f"Bearer {KEY}"}
    while True:
        if process.poll() is not None:
            raise AssertionError("the run ended before all servers were killed: more --steps")
        lines = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text.splitlines()
        running = sum(
            float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")
        )
        if running:
            return running
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--engines", default=",".join(ENGINES), help="some of them, with commas between")
    parser.add_argument("--kills", action="store_true", help="kill servers, instead of comparing engines")
    arguments = parser.parse_args()
    os.environ["VLLM_API_KEY"] = KEY
    # Servers are in sessions of their own, and would outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.kills:
            print(json.dumps(kills(Path(folder), arguments.steps), indent=2))
            return
        for name in arguments.engines.split(","):
            run_dir, start = Path(folder) / name / "run", perf_counter()
            run_dir.parent.mkdir()
            with ExitStack() as stack:
                ENGINES[name](run_dir, arguments.steps, stack)
            found = {**figures(run_dir), "seconds": round(perf_counter() - start)}
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
