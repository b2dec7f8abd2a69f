"""The table of faults on its page, and one of the trials of `python -m tests.run.faults`, which makes them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.run.fault_table import FAULTS
from tests.run.faults import are_same, counts_of, make_whole, num_trials, shown, table, try_fault

TRIALS = {each.name: each.trials for each in FAULTS}


def test_the_page_has_the_faults_of_the_command_and_those_that_were_tried_came_out_right() -> None:
    counts = counts_of(shown())
    assert shown() == table(counts) and counts.keys() == {fault.name for fault in FAULTS}
    for fault in FAULTS:
        made, right = counts[fault.name]
        assert made == right <= num_trials(fault), fault.name


def test_weights_are_compared_where_rows_were_split_too() -> None:
    wanted = {"a": torch.ones(3)}
    rounded, others = {"a": torch.ones(3) + 1e-5}, {"a": torch.ones(3) + 1e-4}
    assert are_same(rounded, wanted, is_split=True) and not are_same(rounded, wanted, is_split=False)
    assert not are_same(others, wanted, is_split=True) and not are_same({}, wanted, is_split=True)
    assert are_same({"a": torch.ones(3)}, wanted, is_split=False)


@pytest.mark.slow
def test_a_run_whose_memory_runs_out_comes_to_the_same_end(clips: Path, tmp_path: Path) -> None:
    whole = make_whole(tmp_path, clips)
    (tmp_path / "fault").mkdir()
    trial = TRIALS["memory that runs out in an update"]["on the way forward"]
    try_fault(tmp_path / "fault", clips, whole, trial)
