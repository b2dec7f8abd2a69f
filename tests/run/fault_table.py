"""The faults of machines, data and rewards that `faults.py` does to runs, and what a run has to do then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.run.kills import PHASES, Killed, Moment
from tests.run.soak import ROUGH
from tests.support import broken

NUM_STEPS = 4
SETTINGS = [
    "optim.prompts_per_step=2", "eval.every_steps=0", "media.cache_gib=0", "media.cache_disk_gib=0",
    "media.timeout_s=5", "media.prefetch_steps=0",
]  # fmt: skip
LENIENT = "rewards_max_error_frac=1"
Before = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run with a fault."""

    before: Callable[[Path, Path], Before]
    """Makes what the process does first, of the run's folder and that of its own copy of the clips."""
    settings: Sequence[str] = ()
    tells: Sequence[str] = ()
    """The figures of which some step has more than 0."""
    said: str = ""
    """A pattern of a line on the screen, or of a reason in `failures.jsonl`."""
    ends: bool = False
    """Whether the run ends with that line, the only one that is an error. Otherwise it goes on."""
    mended: Sequence[str] = ()
    """The settings that a run that has ended goes on with, beside its own."""
    equals: bool = True
    """Whether what is learned is at last that of a run without faults."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table."""

    name: str
    made: str
    does: str
    said: str
    """What the run prints, or writes into `failures.jsonl`."""
    trials: Mapping[str, Trial]


def always(fault: Callable[..., None], *arguments: Any) -> Callable[[Path, Path], Before]:
    return lambda *_: partial(fault, *arguments)


def in_run(fault: Callable[..., None], *arguments: Any) -> Callable[[Path, Path], Before]:
    """A fault of the run's folder."""
    return lambda run, _: partial(fault, str(run), *arguments)


def flipped(name: str) -> Callable[[Path, Path], Before]:
    """A fault of a run that was stopped behind its last checkpoint: one bit of a file in there is another one."""

    def before(run: Path, clips: Path) -> Before:
        Killed(run, clips, NUM_STEPS, SETTINGS).finish()
        shutil.rmtree(run / "final")
        broken.flip_a_bit(run / "checkpoints" / f"step_{NUM_STEPS:06d}" / name)
        return nothing

    return before


def nothing() -> None: ...


def of_clips(fault: Callable[[list[str]], None]) -> Callable[[Path, Path], Before]:
    """A fault of half of the training clips."""

    def before(_: Path, clips: Path) -> Before:
        videos = [str(clips / json.loads(line)["video"]) for line in (clips / "train.jsonl").open()]
        return partial(fault, videos[::2])

    return before


def rough(function: str, **arguments: Any) -> str:
    given = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    return f"rewards.rough={{fn: '{ROUGH}:{function}', weight: 0.1, timeout_s: 1, args: {{{given}}}}}"


def at_random(ways: str) -> str:
    return rough("fails_at_random", seed=0, frac=0.2, log="/dev/null", ways=ways)


METRICS = Moment("grpo.run.folder", "RunDir.append_metrics", call=4)
ROLLOUTS = Moment("pyarrow.parquet", "write_table", call=3)
CHECKPOINT = Moment("accelerate.accelerator", "Accelerator.save_state", call=2)
FINAL = Moment("grpo.loop", "save_final")
GOES_ON = r"; the newest checkpoint is of step \d.*"
NO_SPACE = r"error: OSError: \[Errno 28\] No space left on device \(in .*\)" + GOES_ON
TOO_LARGE = r"error: OSError: \[Errno 27\] File too large: '.*'" + GOES_ON
# Parquet's writer has words of its own.
READ_ONLY = r"error: OSError: \[Errno 30\] .*Read-only file system.*" + GOES_ON

FAULTS = [
    Fault(
        name="killed in any phase",
        made=f"SIGKILL in each of the {len(PHASES)} phases of `tests/run/kills.py`",
        does="the same command goes on, to the same figures and weights",
        said="resuming after step 4",
        trials={},
    ),
    Fault(
        name="a full disk",
        made="no room for a row of metrics or a file of rollouts; a limit on the size of files (Errno 27) instead of a "
        "full disk before a checkpoint and the final model",
        does="ends; the same command goes on where there is room again",
        said="error: OSError: [Errno 28] No space left on device (in RUN_DIR); the newest checkpoint is of step 2; "
        "or error: OSError: [Errno 27] File too large: FILE, with the same end",
        trials={
            "a row of metrics": Trial(before=always(broken.has_no_room, METRICS), said=NO_SPACE, ends=True),
            "rollouts": Trial(before=always(broken.has_no_room, ROLLOUTS), said=NO_SPACE, ends=True),
            "a checkpoint": Trial(before=always(broken.disk_is_full, CHECKPOINT), said=TOO_LARGE, ends=True),
            "the model": Trial(before=always(broken.disk_is_full, FINAL), said=TOO_LARGE, ends=True),
        },
    ),
    Fault(
        name="a read-only disk",
        made="the run's folder is mounted read-only before each of these four",
        does="ends; the same command goes on where the disk can be written to again",
        said="error: OSError: [Errno 30] Read-only file system: FILE; the newest checkpoint is of step 2",
        trials={
            name: Trial(before=in_run(broken.disk_is_read_only, moment), said=READ_ONLY, ends=True)
            for name, moment in {
                "a row of metrics": METRICS,
                "rollouts": ROLLOUTS,
                "a checkpoint": CHECKPOINT,
                "the model": FINAL,
            }.items()
        },
    ),
    Fault(
        name="a checkpoint with flipped bits",
        made="one bit of the newest checkpoint's weights, moments, random states or guard is another one",
        does="sets it aside, and goes on from the one before",
        said="note: CHECKPOINT is damaged and left out: FILE is not as it was written",
        trials={
            name: Trial(before=flipped(name), said=f"is damaged and left out: {name} is not as it was")
            for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "guard.json")
        },
    ),
    Fault(
        name="clips that vanish, change or hang",
        made="half of the training clips are removed, changed for each other, or can be decoded without an end",
        does="goes on without their groups, and tries those that hang once more",
        said="failures.jsonl: CLIP: not read within media.timeout_s=120; `groups/lost`, `media/failed`",
        trials={
            "vanish": Trial(
                before=of_clips(broken.clips_vanish),
                said="no such file",
                tells=["groups/lost"],
                equals=False,
            ),
            "change": Trial(
                before=of_clips(broken.clips_change),
                said="has changed since",
                tells=["groups/lost"],
                equals=False,
            ),
            "hang": Trial(
                before=of_clips(broken.clips_hang),
                said="not read within media.timeout_s=5",
                tells=["groups/lost"],
                equals=False,
            ),
        },
    ),
    Fault(
        name="NaN in weights",
        made="a weight becomes NaN before step 3",
        does="ends; the same command goes on from the checkpoint before",
        said="error: sample ID: the engine's log-probs are not finite; are the weights?",
        trials={
            "in step 3": Trial(
                before=always(broken.weights_are_nan),
                said="error: .*log-probs are not finite.*" + GOES_ON,
                ends=True,
            )
        },
    ),
    Fault(
        name="NaN in gradients",
        made="the loss of a row is NaN, once or more often than `optim.max_skipped_updates`",
        does="skips the update, and stores the row; ends if it does not stop",
        said="error: step 3: the loss or gradient of 2 updates in a row was not finite, more than "
        "optim.max_skipped_updates=1; `optim/skipped_updates`",
        trials={
            "once": Trial(
                before=always(broken.gradients_are_nan, 1), tells=["optim/skipped_updates"], equals=False
            ),
            "again and again": Trial(
                before=always(broken.gradients_are_nan, 9),
                settings=["optim.max_skipped_updates=1"],
                ends=True,
                said="error: step 3: the loss or gradient of 2 updates in a row was not finite.*" + GOES_ON,
                tells=["optim/skipped_updates"],
                equals=False,
            ),
        },
    ),
    Fault(
        name="rewards that give NaN, raise, hang or end their process",
        made="a fifth of a reward's completions",
        does="leaves these completions out; ends if they are more than `rewards_max_error_frac`",
        said="error: step 1: rewards.NAME failed on N completions (REASON); `rewards/error_frac`",
        trials={
            ways: Trial(
                before=always(nothing),
                settings=[at_random(ways), LENIENT],
                said=said,
                tells=["rewards/error_frac"],
                equals=False,
            )
            for ways, said in {
                "no_number": "nan",
                "raises": "KeyError: 'at random'",
                "hangs": "no value for 1 s|no value 1 s after",
                "exits": "its process exited with status 3; trying again",
            }.items()
        }
        | {
            "too many": Trial(
                before=always(nothing),
                settings=[at_random("raises")],
                ends=True,
                mended=[LENIENT],
                equals=False,
                said=r"error: step 1: rewards.rough failed on \d+ completions \(KeyError: 'at random'\); .*",
                tells=["rewards/error_frac"],
            )
        },
    ),
    Fault(
        name="memory that runs out in an update",
        made="the pass of a large row lacks memory on its way forward or back, or that of any row",
        does="makes the step's passes anew with that row in two halves, once, with the same gradient; else ends",
        said="error: out of memory: the pass of a row of N tokens is too large, and so is one of a half; lower "
        "optim.tokens_per_row; `optim/split_rows`",
        trials={
            "on the way forward": Trial(
                before=always(broken.memory_lacks, 165, "forward"), tells=["optim/split_rows"]
            ),
            "on the way back": Trial(
                before=always(broken.memory_lacks, 165, "back"), tells=["optim/split_rows"]
            ),
            "always": Trial(
                before=always(broken.memory_lacks, 20, "forward"),
                ends=True,
                said="error: out of memory: the pass of a row of .* tokens is too large, and "
                "(so is one of a half|the larger half of it would still have).*",
            ),
        },
    ),
    Fault(
        name="a dead server",
        made="one of two servers answers no more, or the only one",
        does="samples through the other; ends after `rollout.server_timeout_s` without any",
        said="error: ServerError: rollout.servers: none is left: SERVER does not answer",
        trials={
            "one of two": Trial(
                before=always(broken.server_dies, 20, 2),
                said="rollout: server 0 does not answer",
                equals=False,
            ),
            "the only one": Trial(
                before=always(broken.server_dies, 40, 1),
                settings=["rollout.server_timeout_s=1"],
                ends=True,
                said="error: ServerError: rollout.servers: none is left: server 0 does not answer.*",
                equals=False,
            ),
        },
    ),
    Fault(
        name="a slow file system",
        made="each flush takes 50 ms more, each read of a clip 200 ms",
        does="goes on, to the same figures and weights",
        said="`time/data`",
        trials={
            "writes": Trial(before=always(broken.disk_is_slow)),
            "reads": Trial(before=always(broken.reads_are_slow), tells=["time/data"]),
        },
    ),
    Fault(
        name="a clock that jumps",
        made="each look at the clock finds it up to a day, or a year, from where it is",
        does="goes on, to the same figures and weights: times are measured by a monotonic clock",
        said="",
        trials={
            "by days": Trial(before=always(broken.clock_jumps, broken.DAY_S)),
            "by years": Trial(before=always(broken.clock_jumps, 365 * broken.DAY_S)),
        },
    ),
    Fault(
        name="a worker that the system kills",
        made="SIGKILL to a process that decodes, one that scores, or the supervisors of both",
        does="tries the clip or the completion again in another one",
        said="NAME: its process was killed by signal 9 (SIGKILL); trying again; `rewards/process_deaths`",
        trials={
            "a decoder": Trial(
                before=lambda run, _: partial(broken.reader_dies, str(run.with_name("links"))),
                said=r"killed by signal 9 \(SIGKILL\); trying again",
            ),
            "a scorer": Trial(
                before=always(nothing),
                settings=["REWARD"],
                said=r"killed by signal 9 \(SIGKILL\); trying again",
                tells=["rewards/process_deaths"],
                equals=False,
            ),
            "the supervisors": Trial(
                before=always(broken.supervisors_die), settings=[rough("length")], equals=False
            ),
        },
    ),
]
