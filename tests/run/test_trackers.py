"""Trackers: what reaches them, and that nothing they do stops a run. Those not installed have their test skipped."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image

from grpo.run import trackers
from grpo.run.pictures import draw_group
from grpo.run.trackers import TrackedRun, TrackerThread, check_trackers, close_trackers
from tests.support.stored_runs import scored


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers ask accelerate for the process, and a busy machine starts them slowly."""
    PartialState(cpu=True)
    monkeypatch.setattr(trackers, "CLOSE_WITHIN_S", 120.0)


GROUP = scored(["right", "wrong"], [1.0, 0.0])
OTHER = scored(["other", "wrong"], [1.0, 0.0])


class Kept(GeneralTracker):
    """A tracker that keeps what it is handed."""

    name, requires_logging_directory, main_process_only, tracker = "kept", False, True, None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, Mapping[str, float]]] = []
        self.is_finished = False

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


def start_as(monkeypatch: pytest.MonkeyPatch, tracker: GeneralTracker) -> list[str | None]:
    """Let a tracker stand in for W&B; return the names of the run with which it is started."""
    run_ids: list[str | None] = []

    def start(run: TrackedRun) -> tuple[GeneralTracker, str]:
        run_ids.append(run.run_id)
        return tracker, run.run_id or "new"

    monkeypatch.setattr(trackers, "STARTS", {"wandb": start})
    return run_ids


def log(name: str, folder: Path, rows: Mapping[int, float]) -> None:
    """Log a figure of each step in one go of a run."""
    thread = TrackerThread(name, folder)
    for step, value in rows.items():
        thread.put(step, {"reward/mean": value})
    close_trackers([thread])


def log_pictures(name: str, folder: Path) -> None:
    """Log rows of which two have two pictures, in a run that is resumed after the first."""
    folder.mkdir(exist_ok=True)
    for steps in ((0, 1), (0, 1, 2)):
        thread = TrackerThread(name, folder)
        for step in steps:
            thread.put(step, {"reward/mean": step}, [GROUP, OTHER] if step != 1 else ())
        close_trackers([thread])


def test_a_resumed_run_goes_on_and_logs_no_step_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept()
    run_ids = start_as(monkeypatch, kept)
    log("wandb", tmp_path, {0: 0.1, 1: 0.2, 2: 0.3})
    log("wandb", tmp_path, {2: 0.3, 3: 0.4})
    assert run_ids == [None, "new"] and kept.is_finished
    assert kept.rows == [(step, {"reward/mean": value}) for step, value in enumerate((0.1, 0.2, 0.3, 0.4))]
    assert "warning" not in capsys.readouterr().out


def test_a_tracker_that_hangs_drops_rows_and_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, released = Event(), Event()

    class Hanging(Kept):
        def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
            begun.set()
            released.wait()

    start_as(monkeypatch, Hanging())
    monkeypatch.setattr(trackers, "MAX_WAITING_ROWS", 2)
    monkeypatch.setattr(trackers, "CLOSE_WITHIN_S", 0.1)
    thread = TrackerThread("wandb", tmp_path)
    thread.put(1, {})
    begun.wait()
    for step in range(2, 7):
        thread.put(step, {})
    assert thread.queue.qsize() == 2
    close_trackers([thread])
    assert thread.thread.is_alive()
    released.set()
    said = capsys.readouterr().out
    assert said.count("the run goes on") == 1 and "too slow" in said
    assert "6 of 6 rows were not delivered" in said


def test_a_tracker_that_raises_is_named_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Raising(Kept):
        def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
            if step in (1, 2):
                raise ConnectionError("no route\nto host")
            super().log(values, step)

    tracker = Raising()
    start_as(monkeypatch, tracker)
    log("wandb", tmp_path, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4})
    assert [step for step, _ in tracker.rows] == [0, 3]
    said = capsys.readouterr().out
    assert said.count("ConnectionError: no route to host") == 1
    assert "tracker wandb: 2 of 4 rows were not delivered" in said


def test_pictures_that_fail_cost_no_row_and_are_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
        raise OSError("no room for pictures")

    kept = Kept()
    start_as(monkeypatch, kept)
    monkeypatch.setattr(trackers, "SHOWS", {"wandb": raises})
    thread = TrackerThread("wandb", tmp_path)
    for step in range(4):
        thread.put(step, {}, [GROUP])
    close_trackers([thread])
    assert [step for step, _ in kept.rows] == [0, 1, 2, 3]
    said = capsys.readouterr().out
    # Those that are dropped since two steps' are waiting may come first.
    assert said.count("warning: tracker wandb") == 1 and "not delivered" not in said


def test_a_tracker_that_hangs_in_pictures_neither_stops_the_run_nor_keeps_its_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, released, shown = Event(), Event(), []

    def hangs(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
        begun.set()
        released.wait()
        shown.append((step, len(pictures)))

    kept = Kept()
    start_as(monkeypatch, kept)
    monkeypatch.setattr(trackers, "SHOWS", {"wandb": hangs})
    thread = TrackerThread("wandb", tmp_path)
    thread.put(0, {}, [GROUP, GROUP])
    begun.wait()
    for step in range(1, 50):
        thread.put(step, {}, [GROUP])
    waiting = [thread.queue.get() for _ in range(49)]
    assert [bool(groups) for _, _, groups in filter(None, waiting)] == [True] + [False] * 48
    assert capsys.readouterr().out.count("the pictures of 2 steps are waiting") == 1
    for item in waiting:
        thread.queue.put(item)
    released.set()
    close_trackers([thread])
    assert shown == [(0, 2), (1, 1)] and [step for step, _ in kept.rows] == [*range(50)]
    assert "not delivered" not in capsys.readouterr().out


def test_a_tracker_that_can_not_start_gets_another_attempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, attempts = Kept(), []

    def start(run: TrackedRun) -> tuple[GeneralTracker, str]:
        attempts.append(run)
        if len(attempts) == 1:
            raise OSError("down")
        return kept, "later"

    monkeypatch.setattr(trackers, "RETRY_AFTER_S", 0.0)
    monkeypatch.setattr(trackers, "STARTS", {"wandb": start})
    thread = TrackerThread("wandb", tmp_path)
    thread.put(0, {})
    thread.put(1, {})
    while len(attempts) < 2:
        thread.thread.join(0.01)
    close_trackers([thread])
    assert [step for step, _ in kept.rows] == [0, 1]
    assert len({run.name for run in attempts}) == 1
    said = capsys.readouterr().out
    assert "OSError: down" in said and "not delivered" not in said


def test_a_tracker_that_never_starts_is_given_up_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(run: TrackedRun) -> tuple[GeneralTracker, str]:
        raise OSError("down")

    monkeypatch.setattr(trackers, "STARTS", {"wandb": start})
    log("wandb", tmp_path, {0: 0.1, 1: 0.2})
    assert "2 of 2 rows were not delivered" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_an_error_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers([])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"log\.trackers: wandb is not installed \(pip install wandb\)"):
        check_trackers(["wandb"])


def test_tensorboard_has_the_rows_of_a_run_and_of_its_resumption(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log("tensorboard", tmp_path, {0: 0.25, 1: 0.5})
    log("tensorboard", tmp_path, {1: 0.5, 2: 0.75})
    found = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = found.Scalars("reward/mean")
    assert [(each.step, each.value) for each in scalars] == [(0, 0.25), (1, 0.5), (2, 0.75)]


def test_tensorboard_has_pictures_of_groups_and_none_twice(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_pictures("tensorboard", tmp_path)
    found = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(found.Tags()["images"]) == ["rollouts/0", "rollouts/1"]
    for name, group in (("rollouts/0", GROUP), ("rollouts/1", OTHER)):
        steps, pictures = zip(
            *[(each.step, each.encoded_image_string) for each in found.Images(name)], strict=True
        )
        assert steps == (0, 2)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures[0]))), np.asarray(draw_group(group)))


def test_wandb_writes_offline_files_without_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "5ecre7" * 7)
    (tmp_path / "config.yaml").write_text("api_key: ${oc.env:WANDB_API_KEY}\nseed: 7\n")
    log("wandb", tmp_path, {0: 0.25, 1: 0.5})
    run_id = json.loads((tmp_path / "trackers" / "wandb.json").read_text())["run_id"]
    log("wandb", tmp_path, {1: 0.5, 2: 0.75})
    files = [*tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb")]
    assert len(files) == 2 and all(b"reward/mean" in file.read_bytes() for file in files)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if b"5ecre7" in file.read_bytes()]
    log_pictures("wandb", tmp_path / "other")
    files = [*(tmp_path / "other").glob("wandb/offline-run-*/files/media/images/rollouts_*.png")]
    assert sorted(each.name.split("_")[1] for each in files) == ["0", "0", "2", "2"]


def test_mlflow_has_one_run_of_a_run_and_its_resumption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log("mlflow", tmp_path, {0: 0.25, 1: 0.5})
    log("mlflow", tmp_path, {1: 0.5, 2: 0.75})
    run_id = json.loads((tmp_path / "trackers" / "mlflow.json").read_text())["run_id"]
    client = tracking.MlflowClient(store)
    history = client.get_metric_history(run_id, "reward/mean")
    assert [(each.step, each.value) for each in history] == [(0, 0.25), (1, 0.5), (2, 0.75)]


def test_mlflow_has_pictures_of_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_pictures("mlflow", tmp_path)
    run_id = json.loads((tmp_path / "trackers" / "mlflow.json").read_text())["run_id"]
    files = [each.path for each in tracking.MlflowClient(store).list_artifacts(run_id, "images")]
    pictures = [each for each in files if each.endswith(".png")]
    assert len(pictures) == 4 and sum("+step+0+" in each for each in pictures) == 2


def test_trackio_has_one_run_of_a_run_and_its_resumption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    log("trackio", tmp_path, {0: 0.25, 1: 0.5})
    log("trackio", tmp_path, {1: 0.5, 2: 0.75})
    [name] = SQLiteStorage.get_runs("egogrpo")
    rows = SQLiteStorage.get_logs("egogrpo", name)
    assert [(row["step"], row["reward/mean"]) for row in rows] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    log_pictures("trackio", tmp_path / "pictured")
    assert len([*(tmp_path / "store").rglob("*.png")]) == 4
