"""Faults of machines, data and rewards, each done to a small run, and the table of them that `docs/faults.md` shows.

    python -m tests.run.faults

A run either goes on, and its files tell what it met, or ends with one line on the error stream; then the same command
without the fault goes on, to the figures and weights of a run that met none. The counts in the page are written anew.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from grpo.demo.clips import write_dataset
from grpo.run.folder import RunDir, checkpoint_steps, read_rows
from tests.run.fault_table import FAULTS, NUM_STEPS, SETTINGS, Fault, Trial, rough
from tests.run.kills import PHASES, Killed, kill_in_phases
from tests.support import tiny
from tests.support.runs import close, repeatable, weights

PAGE = tiny.ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- the table of `python -m tests.run.faults` -->\n\n", "<!-- its end -->"
LIMIT_S = 240.0
SPLIT_ATOL = 5e-5
"""What a weight may differ by where rows were split, half of the demo's learning rate: AdamW makes more of rounding in
gradients that are nearly zero, as those of a key's bias are. Measured: 1.7e-5."""


class Wrong(AssertionError):
    """The error of a run that does not do what the table says."""


def demand(is_so: object, what: str) -> None:
    if not is_so:
        raise Wrong(what)


def try_fault(folder: Path, clips: Path, whole: Killed, trial: Trial) -> None:
    """Make a run with a fault; raise Wrong if it, or what it leaves, is not as the trial says."""
    own = shutil.copytree(clips, folder / "clips")
    settings = [
        each.replace("REWARD", rough("is_killed_once", file=folder / "killed")) for each in trial.settings
    ]
    run = Killed(folder / "run", own, NUM_STEPS, [*SETTINGS, *settings])
    process = run.start(trial.before(run.folder, own))
    process.join(LIMIT_S)
    hangs = process.is_alive()
    process.kill()
    process.join()
    log, written = run.log.read_text(errors="replace"), RunDir(run.folder)
    demand(not hangs, f"it hangs: {log}")
    reasons = [str(row.get("reason")) for row in read_rows(written.failures_file)]
    errors = [line for line in log.splitlines() if line.startswith("error:")]
    demand(process.exitcode == int(trial.ends), f"exit status {process.exitcode}: {log}")
    if trial.ends:
        demand(len(errors) == 1 and re.fullmatch(trial.said, errors[0]), f"{errors} is not {trial.said}")
        demand("Traceback" not in log, log)
    else:
        demand(re.search(trial.said, "\n".join([log, *reasons])), f"not said: {trial.said}: {log} {reasons}")
    rows, saved = written.metrics(), max(checkpoint_steps(written.checkpoints), default=0)
    for name in trial.tells:
        demand(any(row.get(name, 0) > 0 for row in rows), f"{name} tells nothing")
    if trial.ends:
        run.settings = [*run.settings, *trial.mended]
        run.finish()
        demand(written.metrics()[: saved + 1] == rows[: saved + 1], "rows are lost")
    compare(written, whole, trial)


def compare(run: RunDir, whole: Killed, trial: Trial) -> None:
    """Fail unless the run has all steps and a model, and where the fault changes nothing those of one without it."""
    rows, expected = (repeatable(each.metrics()) for each in (run, RunDir(whole.folder)))
    demand([row["step"] for row in rows] == [*range(NUM_STEPS + 1)], "steps are missing")
    demand(run.final_step == NUM_STEPS and len([*run.rollouts.iterdir()]) == NUM_STEPS, "files are missing")
    if trial.equals:
        split = [row.pop("optim/split_rows", 0) for row in rows]
        demand(
            close(rows, expected, but=("tokens/computed",)) if any(split) else rows == expected,
            "the figures are others",
        )
        found, wanted = weights(run.path), weights(whole.folder)
        demand(are_same(found, wanted, is_split=any(split)), "the weights are others")


def are_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, is_split: bool) -> bool:
    """Whether weights are the same: bit by bit, but for rounding where rows were split."""
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[name], wanted[name], rtol=0.0, atol=SPLIT_ATOL)
        if is_split
        else torch.equal(found[name], wanted[name])
        for name in wanted
    )


Counts = dict[str, tuple[int, int]]
"""How many of a fault's trials were made, and how many came out right."""


def num_trials(fault: Fault) -> int:
    return len(fault.trials) or len(PHASES)


def table(counts: Counts) -> str:
    """The table of `docs/faults.md`."""
    lines = [
        "| fault | how it is made | the run | what it says, and the figures that tell | tried | right |",
        "| --- " * 6 + "|",
    ]
    for fault in FAULTS:
        words = (fault.name, fault.made, fault.does, fault.said, *counts.get(fault.name, (0, 0)))
        lines.append("| " + " | ".join(map(str, words)) + " |")
    return "\n".join(lines) + "\n\n"


def shown() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def counts_of(shown: str) -> Counts:
    """The counts that a table has."""
    rows = [line.strip("| ").split(" | ") for line in shown.splitlines()[2:] if line]
    return {name: (int(tried), int(right)) for name, *_, tried, right in rows}


def write(counts: Counts) -> None:
    """Write these counts into the page; the other faults keep theirs."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(counts_of(shown()) | counts) + END + rest.partition(END)[2])


def is_right(folder: Path, clips: Path, whole: Killed, trial: Trial | None) -> bool:
    """Whether a trial comes out right; None: the kills."""
    try:
        if trial is None:
            kill_in_phases(folder, clips, PHASES)
        else:
            try_fault(folder, clips, whole, trial)
    except AssertionError as error:
        print(str(error)[-3000:])
        return False
    return True


def make_whole(folder: Path, clips: Path) -> Killed:
    """A run without a fault."""
    whole = Killed(folder / "whole", clips, NUM_STEPS, SETTINGS)
    whole.finish()
    return whole


def main(*words: str) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    # One trial of each fault first, then the second ones.
    order = [
        (fault, name)
        for number in range(max(map(num_trials, chosen)))
        for fault in chosen
        for name in [*(fault.trials or [""])][number : number + 1]
    ]
    counts: Counts = {}
    with tempfile.TemporaryDirectory() as place:
        clips = write_dataset(Path(place, "clips"), num_train=12, num_heldout=4, seed=1)
        whole = make_whole(Path(place), clips)
        for fault, name in order:
            own, trial = Path(tempfile.mkdtemp(dir=place)), fault.trials.get(name)
            right = is_right(own, clips, whole, trial)
            print(f"{'right' if right else 'WRONG'}: {fault.name}: {name}", flush=True)
            num = 1 if trial is not None else len(PHASES)
            made, came_out = counts.get(fault.name, (0, 0))
            counts[fault.name] = made + num, came_out + num * right
            write(counts)
    return sum(made != right for made, right in counts.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
