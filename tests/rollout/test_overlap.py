"""Rollouts of the next step during an update: which weights sample which step is fixed, and outlives a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from grpo.config.schema import Config
from grpo.feed.dynamic_sampling import Sampled
from grpo.groups import Batch
from grpo.learner.update import Learner
from grpo.policy.model import Policy
from grpo.rollout.ahead import Ahead
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.run.rollout_files import VERSIONS, read_columns
from grpo.startup import assembly
from tests.support import beside, runs

RUN = (*beside.OVERRIDES, "optim.schedule=constant", "optim.lr=1e-3")
NOTHING = Sampled(Batch(prompts=(), seeds=(), places=(), lost=()), [], [])


def test_a_step_gets_what_was_sampled_for_it() -> None:
    asked: list[int] = []
    ahead = Ahead(lambda step, _: asked.append(step) or NOTHING, is_on=True)
    assert ahead.wait() is None
    ahead.take(1)
    ahead.start(2)
    assert ahead.wait() == (2, NOTHING) and ahead.take(2) is NOTHING and asked == [1, 2]
    ahead.start(3)
    with pytest.raises(RuntimeError, match="step 4: what was made ahead is of step 3"):
        ahead.take(4)
    ahead.close()


def test_a_failure_of_the_engine_ends_the_step_in_which_it_failed() -> None:
    def fail(step: int, _: Any) -> Sampled:
        raise ValueError(f"no step {step}")

    ahead = Ahead(fail, is_on=True)
    ahead.start(2)
    assert ahead.first_group() is None
    with pytest.raises(ValueError, match="no step 2"):
        ahead.wait()
    ahead.close()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "build_engine", beside.engine_beside)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was left alone."""
    folder = tmp_path_factory.mktemp("overlap") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build_engine", beside.engine_beside)
        runs.run(folder, clips, *RUN)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return runs.repeatable(runs.read_rows(folder / "metrics.jsonl"))


def same(one: Path, other: Path) -> bool:
    ours, theirs = runs.weights(one), runs.weights(other)
    return rows(one) == rows(other) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_from_the_second_step_on_completions_are_of_weights_one_update_older(whole: Path) -> None:
    found = {
        step: {
            version
            for each in read_columns(whole / "rollouts" / f"step_{step:06d}.parquet", [VERSIONS])[VERSIONS]
            for version in each
        }
        for step in (1, 2, 3, 4)
    }
    assert found == {1: {0}, 2: {0}, 3: {1}, 4: {2}}
    steps = rows(whole)[1:]
    assert [row["sampler/age_steps"] for row in steps] == [0, 1, 1, 1]
    # The engine agrees with the weights that have sampled, and not with those that learn.
    assert all(row["sampler/version_gap"] < 1e-4 for row in steps[:3])
    assert steps[0]["sampler/gap_mean"] < 1e-4 < steps[1]["sampler/gap_mean"]


def slowed(function: Callable[..., Any], calls: range) -> Callable[..., Any]:
    """A function some of whose calls take longer."""
    numbers = count()

    def slow(*arguments: Any, **named: Any) -> Any:
        if next(numbers) in calls:
            time.sleep(0.4)
        return function(*arguments, **named)

    return slow


@pytest.mark.usefixtures("engine")
def test_a_run_is_the_same_whatever_is_slower(
    whole: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine, in the first steps, or the learner."""
    monkeypatch.setattr(TransformersEngine, "generate", slowed(TransformersEngine.generate, range(1, 5)))
    monkeypatch.setattr(Learner, "update", slowed(Learner.update, range(2, 4)))
    runs.run(tmp_path / "run", clips, *RUN)
    assert same(tmp_path / "run", whole)


@pytest.mark.usefixtures("engine")
def test_a_run_that_fails_and_one_that_is_made_longer_go_on_with_the_stored_completions(
    whole: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    runs.run(folder, clips, *RUN, "num_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", fails_in(3))
        with pytest.raises(SystemExit, match="failed in step 3"):
            runs.run(folder, clips, *RUN)
        runs.reset_process_state()
    runs.run(folder, clips, *RUN)
    assert same(folder, whole)


def fails_in(step: int) -> Callable[..., Any]:
    update = Learner.update

    def failing(learner: Learner, rows: Any, counts: Any, number: int, **named: Any) -> Any:
        if number == step:
            raise RuntimeError(f"failed in step {step}")
        return update(learner, rows, counts, number, **named)

    return failing


@pytest.mark.usefixtures("engine")
def test_without_learning_it_is_the_synchronous_run(clips: Path, tmp_path: Path) -> None:
    """Then all weights are the same, and only their names differ."""
    still = ("optim.lr=1e-30", "num_steps=2", "checkpoint.every_steps=0", "eval.every_steps=0")
    ahead = runs.repeatable(runs.run(tmp_path / "ahead", clips, *RUN, *still))
    one_by_one = runs.run(tmp_path / "off", clips, *RUN, *still, "rollout.overlap=false")
    own = {"sampler/age_steps", "sampler/version_gap"}
    assert [{k: v for k, v in row.items() if k not in own} for row in ahead] == runs.repeatable(one_by_one)
    assert not own & {key for row in one_by_one for key in row}
    names = read_columns(tmp_path / "off" / "rollouts" / "step_000001.parquet", [VERSIONS])
    assert names == {}


class Stale(TransformersEngine):
    """An engine that keeps its first weights."""

    def sync(self) -> None: ...


def stale(config: Config, accelerator: Accelerator, policy: Policy) -> TransformersEngine:
    good = beside.engine_beside(config, accelerator, policy)
    return Stale(policy, own=good.sampler)


def test_an_engine_that_does_not_sample_from_the_weights_it_should_stops_the_run(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "build_engine", stale)
    with pytest.raises(SystemExit, match=r"step 2: .* it does not sample from the trained weights"):
        runs.run(tmp_path / "run", clips, *RUN, "eval.every_steps=0")
    runs.reset_process_state()


def test_replaced_questions_say_too_which_weights_they_are_of(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "build_engine", beside.engine_beside)
    found = runs.run(
        tmp_path / "run",
        clips,
        *RUN,
        # Of two completions both are often alike.
        *("num_steps=3", "rollout.group_size=2", "eval.every_steps=0"),
        "dynamic_sampling={max_resample_times: 1, skip_epochs: 1}",
    )
    assert all("groups/left_out" in row for row in found[1:])
    late = [row for row in found if row["step"] > 1 and row.get("groups/resampled")]
    assert late
    # The questions that took the place of flat groups are of the step's own weights, the others of those before.
    for row in late:
        file = tmp_path / "run" / "rollouts" / f"step_{row['step']:06d}.parquet"
        of = [{*each} for each in read_columns(file, [VERSIONS])[VERSIONS]]
        assert {row["step"] - 1} in of and {row["step"] - 2} in of and len(set.union(*of)) == 2
        assert 0 < row["sampler/age_steps"] < 1
