"""Rewards written for TRL: what they are given, and what they may return."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.hostile import make_group, synthetic_samples
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings

GROUP = make_group(["cat", "dogs", ""], synthetic_samples({})[0])
PLUGIN = """
import numpy as np

def step(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step)] * len(completions)

def progress(completions, **kwargs):
    state = kwargs.get("trainer_state")
    return [state.global_step / state.max_steps] * len(completions)

def logs(completions, log_metric, log_extra, **kwargs):
    log_metric("mean_length", 1.0)
    log_extra(column="text", values=completions)
    return [1.0] * len(completions)

def array(completions, **kwargs):
    return np.array([len(text) for text in completions], dtype=np.float32)

def scalars(completions, **kwargs):
    return [np.float32(len(text)) for text in completions]

def zero_dimensional(completions, **kwargs):
    return [np.array(len(text)) for text in completions]

def numpy_bools(completions, **kwargs):
    return [np.bool_("a" in text) for text in completions]

def bools(completions, **kwargs):
    return ["a" in text for text in completions]

def table(completions, **kwargs):
    return np.ones((len(completions), 1))

def undefined(completions, **kwargs):
    return np.array([0.0, np.nan, 1.0])
"""
VALUES = {
    "step": (4.0,) * 3,  # in the fifth step, four are done
    "progress": (0.5,) * 3,
    "logs": (1.0,) * 3,
    "array": (3.0, 4.0, 0.0),
    "scalars": (3.0, 4.0, 0.0),
    "zero_dimensional": (3.0, 4.0, 0.0),
    "numpy_bools": (1.0, 0.0, 0.0),
    "bools": (1.0, 0.0, 0.0),
}


def specs_in(folder: Path, *names: str) -> dict[str, RewardSpec]:
    (folder / "trl_rewards.py").write_text(PLUGIN)
    return {name: RewardSpec(fn=f"{folder}/trl_rewards.py:{name}") for name in names}


@pytest.fixture(params=["in workers", "in this process"])
def rewards(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RewardSet]:
    workers = WorkerSettings() if request.param == "in workers" else None
    loaded = load_rewards(specs_in(tmp_path, *VALUES), workers, num_steps=8)
    yield loaded
    loaded.close()


def test_rewards_get_the_runs_state_and_return_what_trl_takes(rewards: RewardSet) -> None:
    (table,) = rewards.score([GROUP], step=5)
    assert (table.columns, table.failures) == (VALUES, ())


def test_what_trl_gives_is_no_column_that_the_data_must_have(tmp_path: Path) -> None:
    assert load_rewards(specs_in(tmp_path, "logs")).rewards[0].columns == ()


@pytest.mark.parametrize(
    ("name", "failed", "message"),
    [("table", [0, 1, 2], "ndarray for a list of 3"), ("undefined", [1], "nan, not a finite number")],
)
def test_what_has_no_number_for_a_completion_fails(
    tmp_path: Path, name: str, failed: list[int], message: str
) -> None:
    (table,) = load_rewards(specs_in(tmp_path, name)).score([GROUP])
    assert [failure.rollout_index for failure in table.failures] == failed
    assert message in table.failures[0].summary


def test_tensors_are_numbers_too(tmp_path: Path) -> None:
    (tmp_path / "tensors.py").write_text(
        "import torch\n"
        "def vector(completions, **kwargs): return torch.tensor([float(len(text)) for text in completions])\n"
        "def scalars(completions, **kwargs): return [torch.tensor(len(text)) for text in completions]\n"
    )
    specs = {name: RewardSpec(fn=f"{tmp_path}/tensors.py:{name}") for name in ("vector", "scalars")}
    (table,) = load_rewards(specs).score([GROUP])
    assert table.columns == {"vector": (3.0, 4.0, 0.0), "scalars": (3.0, 4.0, 0.0)}
