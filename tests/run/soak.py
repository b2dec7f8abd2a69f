"""A long run of the demo in which reads, rewards and syncs fail at random, watched from outside: nothing may grow.

    python -m tests.run.soak 2000

One in a hundred reads of clips, values of a reward and syncs of weights fails, as the seed has it. Fails unless the run
ends, its memory and open files stay as they are over its last half, and it leaves no process and no file behind.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import psutil
from safetensors.torch import load_file

from grpo.config.schema import Config
from grpo.demo.clips import write_dataset
from grpo.groups import Group, Prompt
from grpo.media.clip import ClipSource
from grpo.media.decode_pool import DecodePool
from grpo.policy.model import Policy
from grpo.rollout import Sampling
from grpo.rollout.server_client import ServerClient, ServerGone
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_transfer import FolderTransfer
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.run.folder import RunDir, read_rows
from grpo.startup import assembly
from grpo.startup.servers import transfer_folder
from grpo.workers.processes import rss_bytes
from tests.support.misbehaving import Misbehaving
from tests.support.runs import SMALL, data
from tests.support.trainers import start_trainer

ROUGH = Path(__file__).parents[1] / "support" / "plugins" / "rough.py"
READS = ("once", "segfault", "bug", "hang")
"""What happens to a read: `misbehaving.py` knows clips by these names. The first is read when it is tried again."""
SYNC = ("/pause?mode=abort", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume")
"""The requests of a sync, at one of which a server does not answer."""
LIMIT_MB = 1.0
"""The most that memory may grow by in a hundred steps."""
OWN = [
    "optim.prompts_per_step=2", "optim.lr=2e-6", "optim.schedule=constant", "optim.max_idle_steps=0",
    "eval.every_steps=250", "checkpoint.every_steps=100", "media.cache_gib=0", "media.cache_disk_gib=0",
    "media.timeout_s=1", "rewards_max_error_frac=1", "rollout.server_timeout_s=20",
]  # fmt: skip


class Faults:
    """The faults of a run, which are written down as they happen."""

    def __init__(self, folder: Path, seed: int, frac: float) -> None:
        self.log, self.links, self.frac = folder / "faults.log", folder / "links", frac
        self.draw = {kind: random.Random(f"{kind} {seed}") for kind in ("reads", "syncs")}
        self.links.mkdir()

    def one_of(self, kind: str, names: Sequence[str]) -> str | None:
        """The name of a fault, or mostly None."""
        draw = self.draw[kind]
        if draw.random() >= self.frac:
            return None
        with self.log.open("a") as log:
            log.write(f"{kind}\n")
        return draw.choice(names)

    def source(self, source: ClipSource, number: int) -> ClipSource:
        """What is read in the place of a clip: mostly the clip."""
        name = self.one_of("reads", READS)
        if name is None:
            return source
        link = self.links / (f"once_{number}.mp4" if name == "once" else f"{name}.mp4")
        if name == "once":
            link.symlink_to(str(source.video))
        return replace(source, video=str(link))


class LocalServer(ServerClient):
    """A server without a network, which samples with weights of its own, and does not answer some requests."""

    def __init__(self, url: str, policy: Policy, own: Policy, fails: Callable[[str], bool]) -> None:
        """Make a server; `fails` is asked at each request's path whether it gets no answer."""
        super().__init__(url, policy.family, timeout_s=20.0, run="run")
        self.engine, self.fails, self.lock = TransformersEngine(policy, own=own), fails, Lock()
        self.loaded = "default"

    def about(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        self.post("/about")
        return {"holds": True, "version": self.loaded}

    def hold(self) -> None: ...

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if self.fails(path):
            raise ServerGone(f"{self.url} does not answer")
        if path == "/update_weights":
            own = dict(self.engine.sampler.model.named_parameters())
            for file in (body or {})["update_info"]["files"]:
                for name, weight in load_file(file).items():
                    own[name].data.copy_(weight)
        if path == "/finish_weight_update":
            self.loaded = (body or {})["weight_version"]

    def generate(self, prompt: Prompt, sampling: Sampling, seed: int, *, version: str | None = None) -> Group:
        self.post("/generate")
        with self.lock:
            if self.loaded != version:
                raise ServerGone(f"{self.url} has other weights")
            return self.engine.generate([prompt], sampling, [seed])[0]


def sample_through_servers(*fails: Callable[[str], bool]) -> None:
    """Let the engine of this process, a run's, be so many servers."""

    def build_engine(config: Config, accelerator: object, policy: Policy) -> ServerEngine:
        dtype, where = policy.model.dtype, transfer_folder(config)
        owns = [assembly.load_reference(config, policy, dtype) for _ in fails]
        servers = [
            LocalServer(f"server {number}", policy, own, fail)
            for number, (own, fail) in enumerate(zip(owns, fails, strict=True))
        ]
        transfer = FolderTransfer(policy, where, dtype=dtype, writes=True, to_cpu=False)
        proof, timeout_s = assembly.build_proof(config, policy), config.rollout.server_timeout_s
        return ServerEngine(
            servers, transfer, check=lambda _: None, timeout_s=timeout_s, max_tries=3, proof=proof
        )

    assembly.build_engine = build_engine  # pyright: ignore[reportAttributeAccessIssue]


def fail_at_random(folder: Path, seed: int, frac: float) -> None:
    """Let this process, a run's, fail in so large a share of its reads and syncs."""
    faults, read, numbers = Faults(folder, seed, frac), DecodePool._read, iter(range(sys.maxsize))

    def sync_that_fails() -> Callable[[str], bool]:
        fails_at: list[str | None] = [None]

        def fails(path: str) -> bool:
            if path == SYNC[0]:
                fails_at[0] = faults.one_of("syncs", SYNC)
            if is_now := path == fails_at[0]:
                fails_at[0] = None
            return is_now

        return fails

    sample_through_servers(sync_that_fails(), sync_that_fails())
    assembly.ClipReader = partial(Misbehaving, once=str(faults.links))  # pyright: ignore
    DecodePool._read = lambda self, source, path: read(self, faults.source(source, next(numbers)), path)


class Figures(NamedTuple):
    """A run as it is seen from outside, at a step."""

    step: int
    rss_mb: float
    """The memory of the process that trains."""
    workers_mb: float
    """That of the processes below it; what forks share counts in each."""
    num_files: int
    """The files that the process that trains has open."""
    num_threads: int
    num_workers: int
    num_shared: int
    """The files in /dev/shm that these processes have mapped."""


def look(trainer: psutil.Process, step: int, below: Sequence[psutil.Process]) -> Figures | None:
    """What a process is like at the moment; None if it has just ended."""
    rss = {each.pid: rss_bytes(each.pid) / 2**20 for each in (trainer, *below)}
    try:
        return Figures(
            step,
            rss.pop(trainer.pid),
            sum(rss.values()),
            trainer.num_fds(),
            trainer.num_threads(),
            len(below),
            len(shared([trainer, *below])),
        )
    except psutil.Error:
        return None


def shared(processes: Iterable[psutil.Process]) -> set[str]:
    """The files in /dev/shm that processes have mapped."""
    found: set[str] = set()
    for process in processes:
        with suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            found.update(line.split("/dev/shm/")[1].split()[0] for line in lines if "/dev/shm/" in line)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def soak(
    folder: Path, num_steps: int, *, seed: int = 0, frac: float = 0.01, num_clips: int = 256
) -> dict[str, Any]:
    """The figures of a run that fails at random, and of what it leaves."""
    clips = write_dataset(folder / "clips", num_train=num_clips, num_heldout=4, seed=1)
    run, temporary, log = RunDir(folder / "run"), folder / "temporary", folder / "run.log"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    given = f"seed: {seed}, frac: {frac}, log: '{folder}/faults.log'"
    reward = f"rewards.rough={{fn: '{ROUGH}:fails_at_random', weight: 0.1, timeout_s: 1, args: {{{given}}}}}"
    own = [f"run_dir={run.path}", f"num_steps={num_steps}", reward]
    before = partial(fail_at_random, folder, seed, frac)
    process = start_trainer([*SMALL, *data(clips), *OWN, *own], log, before)
    seen, processes, names = list[Figures](), set[psutil.Process](), set[str]()
    while process.is_alive():
        process.join(0.5)
        with suppress(psutil.Error):
            trainer = psutil.Process(process.pid)
            below = trainer.children(recursive=True)
            processes |= {trainer, *below}
            names |= shared([trainer, *below])
            step = run.metrics_file.read_bytes().count(b"\n") - 1 if run.metrics_file.exists() else -1
            # What comes after the last step is the model's writing, and the end.
            if 0 <= step < num_steps and (figures := look(trainer, step, below)) is not None:
                seen.append(figures)
    assert process.exitcode == 0, log.read_text(errors="replace")[-3000:]
    time.sleep(1.0)
    files = [*temporary.rglob("*"), *run.path.glob(".*partial*"), *run.path.glob("weights_for_servers*")]
    (folder / "seen.json").write_text(json.dumps(seen))
    return {
        "steps": run.final_step,
        "injected": Counter((folder / "faults.log").read_text().split()),
        "told": told(run),
        "processes_left": [str(each) for each in processes if is_alive(each)],
        "files_left": [str(file) for file in files],
        "in_memory_left": sorted(names & {*os.listdir("/dev/shm")}),
        **growth(seen),
    }


def told(run: RunDir) -> dict[str, Any]:
    """What the run's own files tell of the faults."""
    rows, failures = run.metrics(), read_rows(run.failures_file)
    names = ("media/failed", "groups/lost", "rewards/process_deaths")
    return {name: sum(row.get(name, 0) for row in rows) for name in names} | Counter(
        f"failures/{row['kind']}" for row in failures
    )


def growth(seen: Sequence[Figures]) -> dict[str, Any]:
    """How the figures of the last half change: memory's slope, and of two quarters the least memory and the counts
    that 95 % are not below: workers are fewer for a moment where one has just died, and more where much is to do."""
    half = [each for each in seen if each.step >= seen[-1].step / 2]
    quarters = [each for each in half if each.step < 0.75 * seen[-1].step], [*half[len(half) // 2 :]]
    steps = [each.step for each in half]
    slope = 100 * float(np.polyfit(steps, [each.rss_mb for each in half], 1)[0])
    low = {
        name: [
            float(np.quantile([getattr(each, name) for each in quarter or half], q, method="lower"))
            for quarter in quarters
        ]
        for name in Figures._fields[1:]
        for q in [0.0 if name.endswith("_mb") else 0.05]
    }
    at = {f"rss_mb_at_{each.step}": round(each.rss_mb) for each in seen[:: max(1, len(seen) // 8)]}
    return {"rss_mb_per_100_steps": round(slope, 3), "low_in_the_last_quarters": low, **at}


def main(num_steps: str = "2000", seed: str = "0") -> None:
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        found = soak(Path(name), int(num_steps), seed=int(seed))
        print(json.dumps(found | {"seconds": round(time.monotonic() - began)}, indent=2))
    assert found["steps"] == int(num_steps)
    assert not found["processes_left"] and not found["files_left"]
    assert not found["in_memory_left"] and found["rss_mb_per_100_steps"] < LIMIT_MB
    for name, (third, fourth) in found["low_in_the_last_quarters"].items():
        room = LIMIT_MB * int(num_steps) / 400 if name.endswith("_mb") else 0
        assert fourth <= third + room, name


if __name__ == "__main__":
    main(*sys.argv[1:])
