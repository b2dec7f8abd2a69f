"""Trackers: TensorBoard, Weights & Biases, trackio and MLflow get each step's figures, and pictures of a few groups.

They never stop or slow a run: each has a thread of its own and a bounded queue. The libraries' calls are those of
accelerate's trackers, but for pictures where those have none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

import numpy as np
import yaml
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from PIL import Image
from tqdm import tqdm

from grpo.groups import ScoredGroup
from grpo.run.disk import write_text
from grpo.run.pictures import draw_group

PROJECT = "egogrpo"
"""The project, or experiment, that runs belong to where the tracker's own variable of the environment names none."""
MAX_WAITING_ROWS = 1000
"""The rows that wait for a tracker; those of later steps are dropped."""
MAX_WAITING_PICTURES = 2
"""The steps whose pictures wait for a tracker, each with the frames of its clips; those of later steps are dropped."""
PICTURES = "rollouts"
"""What the pictures are called in trackers."""
RETRY_AFTER_S = 60.0
"""How long a tracker that did not start is left alone, while rows wait for it."""
CLOSE_WITHIN_S = 15.0
"""How long all trackers together may take at the end of a run, until they are left alone."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as a tracker is to know it."""

    folder: Path
    name: str
    """The name of a run that is new to the tracker."""
    run_id: str | None
    """What the tracker calls a run that it knows; None: it is new."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the run folder has them, without what the environment has filled in."""
        file = self.folder / "config.yaml"
        return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def _tensorboard(run: TrackedRun) -> tuple[GeneralTracker, str]:
    tracker = TensorBoardTracker("tensorboard", run.folder)
    tracker.start()
    return tracker, "tensorboard"


def _wandb(run: TrackedRun) -> tuple[GeneralTracker, str]:
    run_id = run.run_id or run.name
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    # W&B would wrap the process's output, ask for a key, and at exit wait until all is uploaded, however long it takes.
    settings = {"console": "off", "login_timeout": 1, "init_timeout": 15, "finish_timeout": 10}
    options = {"id": run_id, "name": run_id, "resume": "allow", "dir": str(run.folder), "settings": settings}
    tracker = WandBTracker(project, config=run.settings, **options)
    tracker.start()
    return tracker, run_id


def _trackio(run: TrackedRun) -> tuple[GeneralTracker, str]:
    run_id = run.run_id or run.name
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    tracker = TrackioTracker(project, name=run_id, resume="allow", config=run.settings, embed=False)
    tracker.start()
    return tracker, run_id


def _mlflow(run: TrackedRun) -> tuple[GeneralTracker, str]:
    tracker = MLflowTracker(PROJECT, run_id=run.run_id, run_name=None if run.run_id else run.name)
    tracker.start()
    return tracker, tracker.tracker.info.run_id


STARTS: Mapping[str, Callable[[TrackedRun], tuple[GeneralTracker, str]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
"""The functions that start a tracker and return it with its name of the run."""


def _tensorboard_pictures(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
    assert isinstance(tracker, TensorBoardTracker)
    for index, picture in enumerate(pictures):
        batch_FHWC = np.asarray(picture)[None]
        tracker.log_images({f"{PICTURES}/{index}": batch_FHWC}, step=step, dataformats="NHWC")
    tracker.writer.flush()


def _wandb_pictures(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
    assert isinstance(tracker, WandBTracker)
    tracker.log_images({PICTURES: list(pictures)}, step=step)


def _trackio_pictures(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    assert isinstance(tracker, TrackioTracker)
    named = {f"{PICTURES}/{index}": trackio.Image(picture) for index, picture in enumerate(pictures)}
    tracker.run.log(named, step=step)


def _mlflow_pictures(tracker: GeneralTracker, pictures: Sequence[Image.Image], step: int) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]

    for index, picture in enumerate(pictures):
        mlflow.log_image(picture, key=f"{PICTURES}/{index}", step=step, synchronous=True)


SHOWS: Mapping[str, Callable[[GeneralTracker, Sequence[Image.Image], int], None]] = {
    "tensorboard": _tensorboard_pictures,
    "wandb": _wandb_pictures,
    "trackio": _trackio_pictures,
    "mlflow": _mlflow_pictures,
}
"""The functions that hand a step's pictures to a tracker, which has the step's row by then."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError, with the package to install, for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"log.trackers: {name} is not installed (pip install {name})")


class TrackerThread:
    """A thread that hands rows to one tracker.

    What the tracker can't take is dropped and counted. The user is told once, and at the end how much was dropped.
    """

    def __init__(self, name: str, run_folder: Path) -> None:
        self.name, self.run_folder = name, run_folder
        self.state_file = run_folder / "trackers" / f"{name}.json"
        """The file with the tracker's name of the run and the last step that it was handed."""
        self.queue: SimpleQueue[tuple[int, Mapping[str, float], Sequence[ScoredGroup]] | None] = SimpleQueue()
        self.room_for_pictures = Semaphore(MAX_WAITING_PICTURES)
        self.num_rows = self.num_delivered = 0
        self.has_warned = False
        self.tracker: GeneralTracker | None = None
        self.run_id: str | None = None
        self.new_name = f"{run_folder.resolve().name}-{uuid4().hex[:8]}"
        self.ends = Event()
        self.last_step = -1
        self.thread = Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self.thread.start()

    def put(self, step: int, row: Mapping[str, float], groups: Sequence[ScoredGroup] = ()) -> None:
        """Queue a step's row, and the groups to draw; what too much is waiting of already is dropped."""
        self.num_rows += 1
        if self.queue.qsize() >= MAX_WAITING_ROWS:
            self._warn(f"it is too slow: {MAX_WAITING_ROWS} rows are waiting")
            return
        if groups and not self.room_for_pictures.acquire(blocking=False):
            self._warn(f"it is too slow: the pictures of {MAX_WAITING_PICTURES} steps are waiting")
            groups = ()
        self.queue.put((step, row, groups))

    def end(self) -> None:
        """Tell the thread that no row follows."""
        self.ends.set()
        self.queue.put(None)

    def wait(self, until_s: float) -> None:
        """Wait for the thread until a time of the monotonic clock, and say how many rows were dropped."""
        self.thread.join(max(until_s - monotonic(), 0.0))
        if self.thread.is_alive():
            self._warn(f"it did not end within {CLOSE_WITHIN_S:g} s")
        if dropped := self.num_rows - self.num_delivered:
            tqdm.write(f"warning: tracker {self.name}: {dropped} of {self.num_rows} rows were not delivered")

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            if (tracker := self._started()) is None:
                return
            step, row, groups = item
            is_new = step > self.last_step
            self._attempt(partial(self._deliver, tracker, step, row))
            if groups and is_new:
                self._attempt(partial(self._show, tracker, step, groups))
            if groups:
                self.room_for_pictures.release()
        if self.tracker is not None:
            self._attempt(self.tracker.finish)

    def _started(self) -> GeneralTracker | None:
        """Return the tracker after as many attempts as it needs; None if the run has ended before."""
        while self.tracker is None:
            self._attempt(self._start)
            if self.tracker is None and self.ends.wait(RETRY_AFTER_S):
                return None
        return self.tracker

    def _attempt(self, call: Callable[[], None]) -> None:
        # Whatever a tracker's library raises must not stop the run; the next call is another attempt.
        try:
            call()
        except Exception as error:
            self._warn(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _deliver(self, tracker: GeneralTracker, step: int, row: Mapping[str, float]) -> None:
        # A run that goes on from a checkpoint repeats the steps after it.
        if step > self.last_step:
            tracker.log(dict(row), step=step)
            self._remember(step)
        self.num_delivered += 1

    def _show(self, tracker: GeneralTracker, step: int, groups: Sequence[ScoredGroup]) -> None:
        SHOWS[self.name](tracker, [*map(draw_group, groups)], step)

    def _start(self) -> None:
        if self.state_file.exists():
            state = json.loads(self.state_file.read_bytes())
            self.run_id, self.last_step = state["run_id"], state["last_step"]
        run = TrackedRun(folder=self.run_folder, name=self.new_name, run_id=self.run_id)
        self.tracker, self.run_id = STARTS[self.name](run)
        self._remember(self.last_step)

    def _remember(self, step: int) -> None:
        self.last_step = step
        self.state_file.parent.mkdir(exist_ok=True)
        write_text(self.state_file, json.dumps({"run_id": self.run_id, "last_step": step}) + "\n")

    def _warn(self, what: str) -> None:
        if not self.has_warned:
            self.has_warned = True
            tqdm.write(f"warning: tracker {self.name}: {what}; the run goes on, rows may be missing there")


def close_trackers(trackers: Sequence[TrackerThread]) -> None:
    """Let all trackers finish at the same time, and leave those alone that take too long."""
    for tracker in trackers:
        tracker.end()
    until_s = monotonic() + CLOSE_WITHIN_S
    for tracker in trackers:
        tracker.wait(until_s)
