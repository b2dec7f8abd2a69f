"""Runs that are killed at any moment and made longer, against one that is left alone.

    python -m tests.run.kills 20 [overlap]

One kill in each phase, after each of which the run is finished and made longer, then so many at random moments. Fails
unless the metrics and the weights are those of the run that nobody has killed. overlap: the rollouts of the next step
are sampled during the update.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grpo.demo.clips import write_dataset
from grpo.run.folder import RunDir, read_rows
from tests.support import beside
from tests.support.runs import SMALL, data, repeatable, weights
from tests.support.trainers import start_trainer

# Lengths are even: then a longer run is evaluated at the steps at which a shorter one ended. The learning rate is one
# at which some hundred steps, one step off-policy, don't ruin the policy.
OWN = ["optim.schedule=constant", "eval.every_steps=2", "checkpoint.every_steps=2", "optim.lr=1e-4"]
LONGER_BY = 2


class Moment(NamedTuple):
    """A moment in a run: before or after a call of a function."""

    module: str
    function: str
    is_after: bool = False
    call: int = 1


PHASES = {
    "its media files are listed": Moment("grpo.run.media_files", "MediaFiles.write"),
    "a held-out question is asked": Moment("grpo.evaluation", "Evaluator.run"),
    "held-out answers are written": Moment("grpo.run.recorder", "Recorder.write_answers", is_after=True),
    "completions are sampled": Moment(
        "grpo.rollout.transformers_engine", "TransformersEngine.generate", call=3
    ),
    "the weights have moved": Moment("grpo.learner.update", "Learner.update", is_after=True, call=2),
    "rollouts are written": Moment("grpo.run.folder", "RunDir.write_rollouts"),
    "rollouts are renamed": Moment("pyarrow.parquet", "write_table", is_after=True, call=2),
    "a row of metrics is written": Moment("grpo.run.folder", "RunDir.append_metrics", call=2),
    "a row of metrics is there": Moment("grpo.run.folder", "RunDir.append_metrics", is_after=True, call=2),
    "a checkpoint begins": Moment("accelerate.accelerator", "Accelerator.save_state"),
    "its weights are written": Moment("accelerate.checkpointing", "save", is_after=True),
    "its manifest is written": Moment("grpo.run.checkpoint", "write_text"),
    "it is flushed": Moment("grpo.run.disk", "flush", call=4),
    "it is whole": Moment("grpo.run.checkpoint", "put_in_place"),
    "it is in place": Moment("grpo.run.checkpoint", "put_in_place", is_after=True),
    "the old one is removed": Moment("grpo.run.checkpoint", "_remove_old", is_after=True),
    "the model is written": Moment("grpo.loop", "save_final"),
    "the model is whole": Moment("grpo.run.final_model", "put_in_place"),
    "the model is in place": Moment("grpo.run.final_model", "put_in_place", is_after=True),
    "a resumed run is loaded": Moment("grpo.run.checkpoint", "restore", is_after=True),
    "what came later is forgotten": Moment("grpo.run.folder", "RunDir.forget_after"),
    "a longer run has forgotten it": Moment("grpo.run.folder", "RunDir.forget_after", is_after=True),
}


def place_of(moment: Moment) -> tuple[Any, str]:
    """The module or class that has the moment's function, and the function's name in it."""
    owner: Any = importlib.import_module(moment.module)
    *outer, name = moment.function.split(".")
    for each in outer:
        owner = getattr(owner, each)
    return owner, name


def kill_at(moment: Moment) -> None:
    """Let this process be killed at the moment."""
    act_at(moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def act_at(moment: Moment, action: Callable[..., object]) -> None:
    """Let this process do something once, at the moment; the action gets the call's arguments."""
    owner, name = place_of(moment)
    function, calls = getattr(owner, name), iter(range(1, moment.call + 1))

    def acting(*arguments: Any, **named: Any) -> Any:
        is_now = next(calls, None) == moment.call
        if is_now and not moment.is_after:
            action(*arguments)
        result = function(*arguments, **named)
        if is_now and moment.is_after:
            action(*arguments)
        return result

    setattr(owner, name, acting)


class Killed:
    """A run that is killed, and how long it is by now."""

    def __init__(
        self,
        folder: Path,
        clips: Path,
        num_steps: int = 2,
        settings: Sequence[str] = (),
        *,
        overlaps: bool = False,
    ) -> None:
        self.folder, self.clips, self.num_steps = folder, clips, num_steps
        self.settings, self.overlaps = settings, overlaps
        self.log = folder.with_suffix(".log")

    def start(self, before: Callable[[], object] | None = None) -> Any:
        own = [f"run_dir={self.folder}", f"num_steps={self.num_steps}", *self.settings]
        if self.overlaps:
            own += beside.OVERRIDES
            before = partial(beside.use, before)
        return start_trainer([*SMALL, *data(self.clips), *OWN, *own], self.log, before)

    def finish(self) -> None:
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        assert RunDir(self.folder).final_step == self.num_steps

    def kill_in(self, phase: str) -> None:
        """Kill the run in a phase of a longer one; then let that one end."""
        self.num_steps += LONGER_BY
        process = self.start(partial(kill_at, PHASES[phase]))
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{phase}: {self.log.read_text()}"
        self.finish()

    def kill_after(self, seconds: float) -> bool:
        """Kill the run, made longer where it is finished, if it still runs after so many seconds."""
        if RunDir(self.folder).is_finished(self.num_steps):
            self.num_steps += 3 * LONGER_BY
        process = self.start()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), self.log.read_text()
        return process.exitcode != 0


def compare(killed: Killed, folder: Path) -> None:
    """Fail unless the run is the same as one in this folder that nobody kills."""
    whole = Killed(folder, killed.clips, killed.num_steps, overlaps=killed.overlaps)
    whole.finish()
    rows, expected = (repeatable(read_rows(run.folder / "metrics.jsonl")) for run in (killed, whole))
    assert [row["step"] for row in rows] == [*range(killed.num_steps + 1)]
    for row, other in zip(rows, expected, strict=True):
        assert row == other, row["step"]
    for name, weight in weights(whole.folder).items():
        assert torch.equal(weight, weights(killed.folder)[name]), name


def kill_in_phases(
    folder: Path,
    clips: Path,
    phases: Iterable[str],
    say: Callable[[str], object] = print,
    *,
    overlaps: bool = False,
) -> None:
    killed = Killed(folder / "killed", clips, overlaps=overlaps)
    killed.finish()
    for phase in phases:
        killed.kill_in(phase)
        say(f"killed as {phase}; {killed.num_steps} steps")
    compare(killed, folder / "whole")


def kill_at_random(
    folder: Path, clips: Path, number: int, *, longest_s: float, seed: int = 0, overlaps: bool = False
) -> None:
    killed = Killed(folder / "random", clips, 10, overlaps=overlaps)
    draw, done = random.Random(seed), 0
    while done < number:
        after_s = draw.uniform(0, longest_s)
        done += (was_killed := killed.kill_after(after_s))
        print(f"{'killed' if was_killed else 'finished'} within {after_s:.1f} s; {killed.num_steps} steps")
    if not RunDir(killed.folder).is_finished(killed.num_steps):
        killed.finish()
    compare(killed, folder / "left_alone")


def main(number: str, *words: str) -> None:
    overlaps = words == ("overlap",)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = write_dataset(folder / "clips", num_train=12, num_heldout=4, seed=1)
        kill_in_phases(folder, clips, PHASES, overlaps=overlaps)
        kill_at_random(folder, clips, int(number), longest_s=20.0, overlaps=overlaps)
    print(f"the same metrics and weights after {len(PHASES)} kills in phases and {number} at random")


if __name__ == "__main__":
    main(*sys.argv[1:])
