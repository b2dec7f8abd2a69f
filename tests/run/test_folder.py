"""What a run's folder tells of its run: whether it is finished, whether it is this one, whether its files are whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from grpo.config.load import load_config, to_yaml
from grpo.config.schema import Config
from grpo.run.folder import RunDir, checkpoint_steps
from grpo.run.manifest import make_manifest
from tests.support import tiny


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(
        [str(tiny.ROOT / "configs" / "demo.yaml"), f"run_dir={folder}", "num_steps=12", *overrides]
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of 12 steps of which 12 are done and 6 are saved as a model: it was made longer, and died at its end."""
    run = RunDir(tmp_path / "run")
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")
    run.open(to_yaml(config_of(run.path)), make_manifest(data_files=[str(data)], settings={}))
    for step in range(13):
        run.append_metrics({"step": step})
    run.append_failures([{"step": 3, "kind": "sample"}])
    (run.checkpoints / "step_000010").mkdir(parents=True)
    run.final.mkdir()
    (run.final / "training.json").write_text('{"step": 6}')
    return run


def test_the_model_says_whether_a_run_is_finished(run: RunDir) -> None:
    assert run.is_finished(6) and not run.is_finished(12)
    run.check_goes_on(config_of(run.path))  # from the checkpoint
    (run.checkpoints / "step_000010").rmdir()
    with pytest.raises(ValueError, match="a finished run of 6 steps without a checkpoint to go on from"):
        run.check_goes_on(config_of(run.path))
    run.check_goes_on(config_of(run.path, "num_steps=6"))


def test_a_finished_run_is_not_made_longer_from_a_step_before_its_end(run: RunDir) -> None:
    (run.checkpoints / "step_000010").rename(run.checkpoints / "step_000003")
    with pytest.raises(ValueError, match=r"of 6 steps .*, or remove .*/run/final to go back to step 3"):
        run.check_goes_on(config_of(run.path))
    run.check_goes_on(config_of(run.path, "num_steps=6"))  # nothing is left to do
    (run.checkpoints / "step_000003").rename(run.checkpoints / "step_000006")
    run.check_goes_on(config_of(run.path))


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"step": null}'])
def test_a_model_that_does_not_say_its_step_finishes_no_run(damaged: str, run: RunDir) -> None:
    (run.final / "training.json").write_text(damaged)
    assert run.final_step is None and not run.is_finished(1)


@pytest.mark.parametrize("gone", ["metrics.jsonl", "failures.jsonl"])
def test_another_run_is_refused_also_where_the_figures_are_gone(
    gone: str, run: RunDir, tmp_path: Path
) -> None:
    (run.path / gone).unlink()
    run.check_goes_on(config_of(run.path))
    for other in ("seed=7", "optim.lr=1", "rewards.accuracy.weight=3"):
        with pytest.raises(ValueError, match=f"holds a run with {other.partition('=')[0]}="):
            run.check_goes_on(config_of(run.path, other))
    (tmp_path / "train.jsonl").write_text("other")
    with pytest.raises(ValueError, match="train.jsonl has changed"):
        run.check_same_data([str(tmp_path / "train.jsonl")])


@pytest.mark.parametrize(
    "left", ["metrics.jsonl", "checkpoints/step_000002", "rollouts/step_000001.parquet", "final"]
)
def test_whatever_is_left_of_a_run_keeps_others_out(left: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.open(to_yaml(config_of(run.path)), {"data": {}})
    run.check_goes_on(config_of(run.path, "seed=7"))  # nothing was done yet
    (tmp_path / left).mkdir(parents=True) if "." not in left else (tmp_path / left).parent.mkdir(
        exist_ok=True
    )
    if "." in left:
        (tmp_path / left).write_text("")
    with pytest.raises(ValueError, match="holds a run with seed="):
        run.check_goes_on(config_of(run.path, "seed=7"))


DAMAGED = {"empty": b"", "cut off": b'{"step": 1, "lo', "zeros": bytes(40), "binary": b"\x80\xff\n" * 9}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_damaged_file_is_one_line_that_names_it_and_says_what_to_do(
    name: str, damage: str, run: RunDir
) -> None:
    (run.path / name).write_bytes(DAMAGED[damage])
    with pytest.raises(
        ValueError, match=rf"run_dir: .*/{name}: .*put it back, or choose another run_dir"
    ) as caught:
        run.check_goes_on(config_of(run.path))
        run.check_same_data([])
    assert "\n" not in str(caught.value)
    (run.path / name).unlink()
    with pytest.raises(ValueError, match=rf"run_dir: .*/{name}.*put it back, or choose another run_dir"):
        run.check_goes_on(config_of(run.path))
        run.check_same_data([])


@pytest.mark.parametrize("line", [b"\0\0\0", b"\x80\xff", b'{"step": 1', b"7", b"{}"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "failures.jsonl"])
def test_a_damaged_row_is_named(name: str, line: bytes, run: RunDir) -> None:
    file = run.path / name
    whole = file.read_bytes()
    file.write_bytes(line + b"\n" + whole)
    with pytest.raises(
        ValueError, match=rf"run_dir: .*/{name}:1 is damaged: .*; mend that line or remove"
    ) as caught:
        run.check_goes_on(config_of(run.path))
    assert "\n" not in str(caught.value)
    file.write_bytes(whole + line)  # cut off by a kill: the run goes on, and the end is removed
    run.check_goes_on(config_of(run.path))
    run.forget_after(12)
    assert file.read_bytes() == whole


def test_names_that_are_not_of_a_run_are_left_alone(run: RunDir) -> None:
    for name in ("step_000006.bak", "step_best"):
        (run.checkpoints / name).mkdir()
    run.rollouts.mkdir()
    for name in ("step_best.parquet", "step_000011.parquet", "step_000002.parquet", "notes.txt"):
        (run.rollouts / name).write_text("")
    run.forget_after(10)
    assert checkpoint_steps(run.checkpoints) == [10]
    assert {path.name for path in run.rollouts.iterdir()} == {
        "step_best.parquet", "step_000002.parquet", "notes.txt",
    }  # fmt: skip
    assert [json.loads(line)["step"] for line in run.metrics_file.open()] == [*range(11)]


def test_a_lock_is_on_a_file_that_is_open_for_writing_which_nfs_tells_its_server_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, modes = RunDir(tmp_path / "run"), []
    monkeypatch.setattr(
        fcntl, "flock", lambda handle, _: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
    )
    with run.locked():
        assert modes == [os.O_RDWR]
    assert not run.path.exists()


def test_a_folder_that_got_a_file_while_it_was_locked_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked(), pytest.raises(ValueError, match="another process is running in"), run.locked():
        pass
    assert not run.path.exists()
    with run.locked():
        run.config_file.write_text("{}")
    assert run.config_file.exists()
    with run.locked():
        pass


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunDir(tmp_path / "run").locked():
        pass
    assert "has no locks ([Errno 38] Function not implemented)" in caplog.text
