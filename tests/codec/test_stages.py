"""Stages of recipes are run once each, and never go on from what other settings made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grpo.actions import recipe as actions
from grpo.codec import stages as module
from grpo.codec.stages import Stage, run
from grpo.motion.recipe import SMALL, Sizes, stages


def test_a_stage_that_is_done_is_not_done_again_and_one_that_fails_is_named_by_its_log(
    tmp_path: Path,
):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    given = [
        Stage(name="good one", command=[sys.executable, "-c", count]),
        Stage(name="bad", command=[sys.executable, "-c", "raise SystemExit('no luck')"]),
    ]
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            run(tmp_path / "out", given)
    assert (tmp_path / "count").read_text() == "x"
    assert (tmp_path / "out" / "logs" / "bad.log").read_text().endswith("no luck\n")


def test_a_folder_of_other_settings_is_refused_before_anything_is_run(tmp_path: Path, monkeypatch):
    ran: list[Sequence[str]] = []
    monkeypatch.setattr(module.subprocess, "run", lambda command, **_: ran.append(command))
    run(tmp_path, stages(tmp_path, SMALL, 0))
    stage_count = len(ran)
    run(tmp_path, stages(tmp_path, SMALL, 0))
    assert len(ran) == stage_count > 10
    for sizes, seed, problem in [
        (Sizes(), 0, r"data.done is of '--num-train=16', and now it is '--num-train=2048'"),
        (SMALL, 1, r"data.done is of '--seed=0', and now it is '--seed=1'"),
        (replace(SMALL, codec_epochs=3), 0, r"codec_sensor.done is of 'num_epochs=2'"),
        (replace(SMALL, group_size=4), 0, r"tracking_grpo.done is of 'rollout.group_size=2'"),
    ]:
        with pytest.raises(ValueError, match=problem):
            run(tmp_path, stages(tmp_path, sizes, seed))
    # What comes after a stage of other settings is of other settings too.
    (tmp_path / "logs" / "data.done").unlink()
    with pytest.raises(ValueError, match=r"codec_sensor.done is of '--seed=0'"):
        run(tmp_path, stages(tmp_path, SMALL, 1))
    assert len(ran) == stage_count


def test_the_recipe_of_actions_refuses_such_a_folder_too(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: None)
    run(tmp_path, actions.stages(tmp_path, actions.SMALL, 0))
    sizes = actions.Sizes()
    problem = f"data.done is of '--num-train=8', and now it is '--num-train={sizes.num_train}'"
    with pytest.raises(ValueError, match=problem):
        run(tmp_path, actions.stages(tmp_path, sizes, 0))
