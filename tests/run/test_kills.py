"""One of the kills of `python -m tests.run.kills 20`, which does them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.kills import PHASES, kill_in_phases, place_of


def test_every_phase_that_a_run_is_killed_in_still_exists() -> None:
    for moment in PHASES.values():
        owner, name = place_of(moment)
        assert callable(getattr(owner, name))


@pytest.mark.slow
def test_a_run_that_is_made_longer_and_killed_at_its_end_is_that_of_one_left_alone(
    clips: Path, tmp_path: Path
) -> None:
    kill_in_phases(tmp_path, clips, ["its weights are written"])
