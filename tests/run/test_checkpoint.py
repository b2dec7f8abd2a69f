"""Checkpoints: whole or not there, compared with what was written, and loaded without running code."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dist_cp
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from grpo.learner.guards import Guard
from grpo.run import checkpoint
from grpo.run.checkpoint import keep_json, keep_weights, restore, save
from grpo.run.folder import GUARD, Score, best_checkpoint, checkpoint_steps
from tests.support import tiny
from tests.support.runs import reset_process_state


class Counter:
    """A state that JSON can hold."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Parts:
    """What a run keeps, small."""

    def __init__(self, seed: int) -> None:
        reset_process_state()
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        model = nn.Linear(64, 64)
        self.reference, self.counter = nn.Linear(2, 3), Counter(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        keep_json(self.accelerator, "counter", self.counter)
        keep_weights(self.accelerator, "reference", self.reference)

    def train(self) -> None:
        self.model(torch.ones(64)).sum().backward()
        self.optimizer.step()
        self.counter.count += 1

    def state(self) -> list[Any]:
        moments = self.optimizer.state_dict()["state"]
        return [
            *(weight.tolist() for weight in (*self.model.parameters(), *self.reference.parameters())),
            *(moments[index]["exp_avg_sq"].tolist() for index in moments),
            self.counter.count,
        ]


@pytest.fixture
def saved(tmp_path: Path) -> dict[int, list[Any]]:
    """The states of steps 2 and 4, whose checkpoints lie in the folder."""
    parts, states = Parts(seed=1), {}
    for step in (2, 4):
        parts.train()
        save(tmp_path, step, parts.accelerator, keep=2)
        states[step] = parts.state()
    return states


def test_a_checkpoint_gives_back_weights_moments_and_states(tmp_path: Path, saved: dict[int, Any]) -> None:
    resumed = Parts(seed=2)
    assert restore(tmp_path, resumed.accelerator) == 4 and resumed.state() == saved[4] != saved[2]
    assert restore(tmp_path / "none", resumed.accelerator) == 0
    assert not list(tmp_path.glob(".*"))
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_zeros(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000:5096] = bytes(4096)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "one bit": flip_a_bit,
    "zeros": put_zeros,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_loaded(
    name: str, damage: str, tmp_path: Path, saved: dict[int, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](tmp_path / "step_000004" / name)
    resumed = Parts(seed=2)
    assert restore(tmp_path, resumed.accelerator) == 2 and resumed.state() == saved[2]
    [line] = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/step_000004 is damaged" in line and name in line


@pytest.mark.parametrize(
    "name", ["manifest.json", "counter.json", "reference.safetensors", "random_states_0.pkl"]
)
def test_every_file_counts(name: str, tmp_path: Path, saved: dict[int, Any]) -> None:
    (tmp_path / "step_000004" / name).write_bytes(b"{")
    assert restore(tmp_path, Parts(seed=2).accelerator) == 2


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    tmp_path: Path, saved: dict[int, Any]
) -> None:
    for step in saved:
        (tmp_path / f"step_{step:06d}" / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        restore(tmp_path, Parts(seed=2).accelerator)


def test_a_damaged_checkpoint_does_not_count_among_the_newest(tmp_path: Path, saved: dict[int, Any]) -> None:
    (tmp_path / "step_000004" / "optimizer.bin").unlink()
    resumed = Parts(seed=2)
    restore(tmp_path, resumed.accelerator)
    save(tmp_path, 3, resumed.accelerator, keep=2)
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_a_damaged_checkpoint_is_set_aside_and_is_no_longer_the_best(tmp_path: Path) -> None:
    parts = Parts(seed=1)
    for step, score in ((1, 0.5), (2, 0.9)):
        save(tmp_path, step, parts.accelerator, keep=2, score=Score(score, "set"))
    (tmp_path / "step_000002" / "optimizer.bin").write_bytes(b"")
    assert restore(tmp_path, parts.accelerator) == 1 and best_checkpoint(tmp_path) == 1
    for step, score in ((3, 0.2), (4, 0.1)):
        save(tmp_path, step, parts.accelerator, keep=1, score=Score(score, "set"))
    assert checkpoint_steps(tmp_path) == [1, 4]
    assert (tmp_path / "step_000002.damaged" / "model.safetensors").exists()


@pytest.mark.parametrize("manifest", ["[]", '{"step": 4, "files": null}', '{"step": 2, "files": {}}', "7"])
def test_a_manifest_of_another_kind_is_damage(manifest: str, tmp_path: Path, saved: dict[int, Any]) -> None:
    (tmp_path / "step_000004" / "manifest.json").write_text(manifest)
    assert best_checkpoint(tmp_path) is None
    assert restore(tmp_path, Parts(seed=2).accelerator) == 2


def test_files_that_the_manifest_does_not_name_are_no_damage(tmp_path: Path, saved: dict[int, Any]) -> None:
    (tmp_path / "step_000004" / ".nfs000001").write_bytes(b"")
    assert restore(tmp_path, Parts(seed=2).accelerator) == 4


def test_what_a_kill_has_left_is_removed_by_the_next_checkpoint(tmp_path: Path) -> None:
    for name in (".partial_000001", ".step_000001.older"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    save(tmp_path, 2, Parts(seed=1).accelerator, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


class Peers:
    """Two processes that are threads, each with a file of its own in a checkpoint."""

    def __init__(self) -> None:
        self.own = threading.local()
        self.barrier, self.said = threading.Barrier(2, timeout=10), [[], []]

    def gather(self, objects: list[Any]) -> list[Any]:
        self.said[self.own.index] = objects
        self.barrier.wait()
        everything = self.said[0] + self.said[1]
        self.barrier.wait()
        return everything

    def run(self, index: int, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.own.index = index
        accelerator = SimpleNamespace(
            is_main_process=index == 0,
            process_index=index,
            num_processes=2,
            distributed_type=None,
            wait_for_everyone=self.barrier.wait,
            save_state=lambda folder, **_: (Path(folder) / f"weights_{index}").write_text("w"),
            load_state=lambda folder: (Path(folder) / f"weights_{index}").read_text(),
            print=lambda *_, **__: None,
        )
        return function(*arguments, accelerator=accelerator, **named)

    def both(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(self.run, index, function, *arguments, **named) for index in range(2)]
            return [job.result() for job in jobs]


@pytest.mark.parametrize("stale", [0, 1])
def test_a_process_with_a_stale_listing_saves_and_loads_what_the_others_do(
    stale: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on several nodes, where a network's file system lists a folder as it was some time ago."""
    peers = Peers()
    own_files, own_steps = Path.rglob, checkpoint.checkpoint_steps

    def files(folder: Path, pattern: str) -> list[Path]:
        # A process always sees what it wrote itself.
        mine = f"weights_{peers.own.index}"
        return [each for each in own_files(folder, pattern) if peers.own.index != stale or each.name == mine]

    def steps(folder: Path) -> list[int]:
        return own_steps(folder)[: 1 if peers.own.index == stale else None]

    monkeypatch.setattr(checkpoint, "gather_object", peers.gather)
    monkeypatch.setattr(checkpoint, "_tensors_only", lambda _: nullcontext())
    monkeypatch.setattr(Path, "rglob", files)
    for step in (1, 2):
        peers.both(save, tmp_path, step, keep=2)
    manifest = json.loads((tmp_path / "step_000002" / "manifest.json").read_text())
    assert list(manifest["files"]) == ["weights_0", "weights_1"]
    monkeypatch.setattr(checkpoint, "checkpoint_steps", steps)
    assert peers.both(restore, tmp_path) == [2, 2]


@pytest.mark.parametrize(("kind", "now"), [("DEEPSPEED", 2), ("DEEPSPEED", 1), ("MULTI_GPU", 1)])
def test_another_number_of_processes_is_refused_where_it_can_not_go_on(
    kind: str, now: int, tmp_path: Path
) -> None:
    for process in range(2):
        (tmp_path / f"random_states_{process}.pkl").write_bytes(b"")
    launched: Any = SimpleNamespace(distributed_type=DistributedType[kind], num_processes=now)
    words = f"{tmp_path} was saved by 2 processes, and DeepSpeed can't divide it among 1: launch 2"
    refused = kind == "DEEPSPEED" and now == 1
    with pytest.raises(ValueError, match=words) if refused else nullcontext():
        checkpoint._check_processes(tmp_path, launched)


def test_only_finished_checkpoints_count(tmp_path: Path) -> None:
    strange = (".partial_000012", "step_000006.bak", "step_best", "step_6")
    for name in ("step_000002", "step_000010", "step_1234567", *strange):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000008").write_text("no folder")
    assert checkpoint_steps(tmp_path) == [2, 10, 1234567]
    assert checkpoint_steps(tmp_path / "none") == []


def test_the_best_held_out_score_is_kept_beside_the_newest(tmp_path: Path) -> None:
    parts = Parts(seed=1)
    for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.9), (5, 0.0), (6, 0.0)):
        of_set = None if score is None else Score(score, "set")
        save(tmp_path, step, parts.accelerator, keep=2, score=of_set)
    # Of equals the earlier one: what follows may be ruined.
    assert checkpoint_steps(tmp_path) == [2, 5, 6] and best_checkpoint(tmp_path) == 2


def test_scores_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    parts = Parts(seed=1)
    for step, score in ((1, Score(0.9, "easy")), (2, Score(0.3, "hard")), (3, Score(0.2, "hard")), (4, None)):
        save(tmp_path, step, parts.accelerator, keep=1, score=score)
    assert checkpoint_steps(tmp_path) == [2, 4] and best_checkpoint(tmp_path) == 2


def test_the_newest_checkpoint_of_a_run_that_still_learned_is_kept(tmp_path: Path) -> None:
    parts = Parts(seed=1)
    guard = Guard(tmp_path, max_skipped=1, max_idle=0, spike_factor=0, process=0)
    keep_json(parts.accelerator, GUARD, guard)
    for step, num_idle in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 3)):
        guard.num_idle = num_idle
        save(tmp_path, step, parts.accelerator, keep=2)
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    guard.num_idle = 0
    save(tmp_path, 6, parts.accelerator, keep=2)
    assert checkpoint_steps(tmp_path) == [5, 6]


class Planted:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "counter.json"]
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_in_a_checkpoint_is_run(
    name: str, is_zip: bool, tmp_path: Path, saved: dict[int, Any]
) -> None:
    """Not even where the manifest says that this was written."""
    folder, mark = tmp_path / "step_000004", tmp_path / "mark"
    torch.save(Planted(mark), folder / name, _use_new_zipfile_serialization=is_zip)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = checkpoint._checksum(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resumed = Parts(seed=2)
    with suppress(pickle.UnpicklingError, RuntimeError, ValueError):
        restore(tmp_path, resumed.accelerator)
    assert not mark.exists()
    torch.load(folder / name, weights_only=False)
    assert mark.exists()  # the trap works


def test_a_list_of_shards_is_read_and_nothing_in_it_is_run(tmp_path: Path, saved: dict[int, Any]) -> None:
    """As FSDP2 writes it, which needs a GPU under accelerate."""
    folder, mark = tmp_path / "step_000004", tmp_path / "mark"
    writer = dist_cp.FileSystemWriter(folder / "optimizer_0")
    shards = {"model": {"w": torch.ones(3, dtype=torch.bfloat16)}, "step": [torch.tensor(1)], "lr": 0.1}
    dist_cp.save(shards, storage_writer=writer, no_dist=True)
    checkpoint._check_metadata(folder)
    (folder / "optimizer_0" / ".metadata").write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(
        ValueError, match=r"optimizer_0/.metadata: pathlib.Path.* is nothing that a list of shards"
    ):
        checkpoint._check_metadata(folder)
    (folder / "optimizer_0").rename(tmp_path / "elsewhere")
    (folder / "optimizer_0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is nothing that a list of shards"):
        checkpoint._check_metadata(folder)
    assert not mark.exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch import nn
from grpo.run.checkpoint import save
accelerator = Accelerator(cpu=True)
accelerator.prepare(nn.Linear(*map(int, sys.argv[2:])))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # as if the disk had no more room
try:
    save(Path(sys.argv[1]), 2, accelerator, keep=1)
except OSError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_named_with_the_path(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), "1000", "1000"],
        capture_output=True,
        text=True,
        cwd=tiny.ROOT,
        check=True,
    )
    assert said.stdout == f"[Errno 27] {os.strerror(27)}: '{tmp_path}/.partial_000002'\n"
    assert not list(tmp_path.iterdir())  # what was written of it would fill the disk
