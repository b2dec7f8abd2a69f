"""The run folder: everything about a run, readable without this code.

`config.yaml`, `manifest.json`, `metrics.jsonl`, `failures.jsonl`, `rollouts/`, `answers/`, `checkpoints/`, `final/`,
`curves.png`. Only the first process writes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from grpo.config.schema import Config
from grpo.run.blot import without_secrets
from grpo.run.disk import write_text
from grpo.run.manifest import fingerprint
from grpo.run.rollout_files import rollout_files, write_rollouts
from grpo.run.same_run import check_same_run

logger = logging.getLogger(__name__)

CHECKPOINT_MANIFEST = "manifest.json"
"""The file of a checkpoint that names its step, its held-out score and its files."""
GUARD = "guard"
"""The name of the state in a checkpoint that tells whether the run still learned."""
SERVER_LOG = "server.log"
"""The file with what the server of `rollout.engine=vllm_process` says."""
TRAINING = "training.json"
"""The file of a saved model that names the run's step that it is of."""


class RunDir:
    """The run folder with its files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.manifest_file = self.path / "manifest.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.lock_file = self.path / ".lock"
        self.failures_file = self.path / "failures.jsonl"
        self.media_file = self.path / "media_files.json"
        self.stopped_file = self.path / "stopped.txt"
        """The file that says why the run was stopped, of which a launcher's exit status tells nothing."""
        self.bad_rows = self.path / "bad_rows"
        """The folder of rows that could not be trained on, as `guards.py` stores them."""
        self.checkpoints = self.path / "checkpoints"
        self.rollouts = self.path / "rollouts"
        self.answers = self.path / "answers"
        """The folder of the answers to held-out questions, in files like those of rollouts."""
        self.judge_cache = self.path / "eval_judge.sqlite"
        """The file of replies that the judges of held-out sets have given."""
        self.final = self.path / "final"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against a second run; raise ValueError if another process has it.

        A file is locked and not the folder: NFS tells its server of locks on files that are open for writing, and keeps
        one on a folder to the machine. A folder that is made for the lock and stays empty is removed again.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ValueError(f"run_dir: another process is running in {self.path}") from error
        except OSError as error:
            # Lustre without the mount option `flock`, and NFS without its lock service.
            logger.warning("run_dir: %s has no locks (%s): two runs in it are not noticed", self.path, error)
        try:
            yield
        finally:
            if is_new and [*self.path.iterdir()] == [self.lock_file]:
                with suppress(OSError):
                    self.lock_file.unlink()
                    self.path.rmdir()
            os.close(handle)

    @property
    def final_step(self) -> int | None:
        """The step that the model in `final/` says it is of; None if there is none, or one that does not say it."""
        try:
            return int(json.loads((self.final / TRAINING).read_bytes())["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def has_begun(self) -> bool:
        """Whether there is something of a run that another one would lose."""
        files = (self.metrics_file, self.failures_file, self.final)
        return any(map(Path.exists, files)) or bool(
            checkpoint_steps(self.checkpoints) or rollout_files(self.rollouts)
        )

    def open(self, config_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Make the folder, and write the config and the manifest of its run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, config_yaml)
        write_text(self.manifest_file, json.dumps(manifest, indent=2) + "\n")

    def is_finished(self, num_steps: int) -> bool:
        """Return whether the folder holds the model of a run of at least so many steps."""
        return (self.final_step or 0) >= num_steps

    def check_goes_on(self, config: Config) -> None:
        """Raise ValueError if the folder holds another run than the config's, or one that can't be resumed.

        A finished run without a checkpoint of its end can't: a longer run would go back, and lose steps of the
        finished one. Nor can one whose files are damaged.
        """
        if not self.has_begun:
            return
        check_same_run(self.config_file, config)
        last_saved = max(checkpoint_steps(self.checkpoints), default=0)
        goes_back = last_saved < (self.final_step or 1)
        if self.final.exists() and goes_back and not self.is_finished(config.num_steps):
            go_back = (
                f"remove {self.final} to go back to step {last_saved}" if last_saved else "remove that folder"
            )
            raise ValueError(
                f"run_dir: {self.path} holds a finished run of {self.final_step} steps without a checkpoint to go on "
                f"from its end; choose another run_dir, or {go_back}"
            )
        for file in (self.metrics_file, self.failures_file):
            try:
                read_rows(file)
            except ValueError as error:
                raise ValueError(f"run_dir: {error}; mend that line or remove the file") from error

    def check_same_data(self, data_files: Iterable[str]) -> None:
        """Raise ValueError if a data file has changed since the run in this folder read it."""
        if not self.has_begun:
            return
        try:
            before = dict(json.loads(self.manifest_file.read_bytes())["data"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"run_dir: {self.manifest_file}: {' '.join(str(error).split())}; it says what data the run has read: "
                "put it back, or choose another run_dir"
            ) from error
        for path in data_files:
            if path in before and before[path] != fingerprint(path):
                raise ValueError(
                    f"run_dir: {path} has changed since the run in {self.path} read it; "
                    "put the old one back, or choose another run_dir"
                )

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        _append(self.metrics_file, [row])

    def append_failures(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append records, without secrets: the error of a user's reward may repeat its arguments."""
        _append(self.failures_file, ({key: _blotted(value) for key, value in row.items()} for row in rows))

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics_file)

    def each_metrics(self) -> Iterator[dict[str, Any]]:
        return each_row(self.metrics_file)

    def forget_after(self, step: int) -> None:
        """Remove what was written after a step, before the run resumes from there."""
        for file in (self.metrics_file, self.failures_file):
            rows = [row for row in read_rows(file) if row["step"] <= step]
            if file.exists():
                write_text(file, "".join(_line(row) for row in rows))
        for written, file in (
            *rollout_files(self.rollouts).items(),
            *rollout_files(self.answers).items(),
        ):
            if written > step:
                file.unlink()

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of `rollout_rows` as the step's Parquet file."""
        write_rollouts(self.rollouts, step, rows)


def check_is_run(folder: Path) -> None:
    """Raise ValueError, or FileNotFoundError for a folder that is not there, unless it is a run's."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if (folder / "config.yaml").is_file():
        return
    if (folder / "config.json").is_file():
        around = folder.absolute().parent
        its = f"; its run is {around}" if (around / "config.yaml").is_file() else ""
        raise ValueError(f"{folder} is a model folder{its}, and a run's folder is wanted")
    raise ValueError(f"{folder}: no config.yaml in it, so it is not a run's folder")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file, without a last line that is incomplete since the run was killed.

    Raises ValueError with file and line for any other that is no object with a step.
    """
    return [*each_row(path)]


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that `read_rows` returns, one at a time: all of a long run's are much of its memory."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield read_row(line, f"{path}:{number}")


def read_row(line: bytes, place: str) -> dict[str, Any]:
    """Read a row of a JSON Lines file; raise ValueError, with its place, if it is no object with a step."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is damaged: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError(f"{place} is damaged: no row of a step")
    return row


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending; whatever else lies there is left alone."""
    names = [re.fullmatch(r"step_(\d{6,})", path.name) for path in folder.glob("step_*") if path.is_dir()]
    return sorted(int(name[1]) for name in names if name)


class Score(NamedTuple):
    """A held-out score, and the questions that it is of."""

    value: float
    questions: str


def best_checkpoint(folder: Path) -> int | None:
    """Return the step of the checkpoint with the highest held-out score, the earliest of equals; None without one.

    Scores are compared with those of the same questions as the newest one's: a resumed run may have others.
    """
    scores = {step: score for step in checkpoint_steps(folder) if (score := _score(folder, step)) is not None}
    if not scores:
        return None
    questions = scores[max(scores)].questions
    alike = {step: score.value for step, score in scores.items() if score.questions == questions}
    return max(alike, key=lambda step: (alike[step], -step))


def teaching_checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint that was saved while the run still learned; None without one."""
    return max((step for step in checkpoint_steps(folder) if _has_taught(folder, step)), default=None)


def _has_taught(folder: Path, step: int) -> bool:
    """Return whether a checkpoint's step had a signal and an update, as its guard (`guards.py`) has it."""
    try:
        return json.loads((folder / f"step_{step:06d}" / f"{GUARD}.json").read_bytes())["num_idle"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _score(folder: Path, step: int) -> Score | None:
    try:
        stored = json.loads((folder / f"step_{step:06d}" / CHECKPOINT_MANIFEST).read_bytes())["score"]
        return Score(float(stored["value"]), str(stored["questions"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)
        file.flush()
        # A checkpoint is flushed too, and must not know of steps that these rows lack after a power failure.
        os.fsync(file.fileno())


def _blotted(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
