"""Code of a user's rewards: its import reaches no run, and the processes that it starts end with their call."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.workers.processes import tree
from rewards.hostile import make_group, synthetic_samples
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import Reward, RewardSpec, WorkerSettings
from tests.support import tiny
from tests.support.processes import is_running, wait_until

GROUP = make_group(["<answer>B</answer>", "<answer>A</answer>"], synthetic_samples({})[0])
ROUGH = tiny.ROOT / "tests" / "support" / "plugins" / "rough.py"
RUDE = """
import decimal, os, random, sys
import numpy as np
from rewards import reward

os.chdir("/")
os.environ["RANK"] = "3"
random.seed(0)
np.random.seed(0)
np.set_printoptions(precision=1)
decimal.getcontext().prec = 2
sys.path.insert(0, "/nowhere")
sys.setrecursionlimit(777)

@reward
def rude(rollout):
    return 1.0
"""


@pytest.fixture
def made() -> Iterator[list[RewardSet]]:
    sets: list[RewardSet] = []
    yield sets
    for each in sets:
        each.close()


def state() -> tuple[Any, ...]:
    """What an import could change for everybody in the process."""
    numbers = (random.getstate(), str(np.random.get_state()), sys.getrecursionlimit())
    return os.getcwd(), {**os.environ}, [*sys.path], np.get_printoptions(), {*sys.modules}, *numbers


def test_an_import_changes_nothing_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[RewardSet]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rude.py").write_text(RUDE)
    specs = {name: RewardSpec(fn="rude.py:rude") for name in ("rude", "again")}
    load_rewards({"accuracy": RewardSpec()}, WorkerSettings())  # what is loaded for any reward
    before = state()
    made.append(load_rewards(specs | {"accuracy": RewardSpec()}, WorkerSettings()))
    (table,) = made[0].score([GROUP])
    assert table.columns == {"rude": (1.0, 1.0), "again": (1.0, 1.0), "accuracy": (1.0, 0.0)}
    assert state() == before


def test_a_reward_of_ours_that_calls_one_of_the_users_does_so_in_a_worker(
    tmp_path: Path, made: list[RewardSet]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import os\nfrom rewards import reward\n@reward\n"
        f"def mine(rollout):\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    return 1.0\n"
    )
    args = {"max_tokens": 100, "right_by": f"{path}:mine"}
    made.append(load_rewards({"cosine_length": RewardSpec(args=args)}, WorkerSettings()))
    assert made[0].score([GROUP])[0].failures == ()
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_a_declaration_says_what_the_code_says(made: list[RewardSet]) -> None:
    kinds = tiny.ROOT / "configs" / "plugins" / "kinds.py"
    names = ("sees_motion", "rarity", "Novelty", "remote", "needs_eyes", "trl_style")
    specs = {name: RewardSpec(fn=f"{kinds}:{name}") for name in names}
    made.append(load_rewards(specs, WorkerSettings()))
    declared, loaded = made[0].rewards, load_rewards(specs).rewards
    assert [replace(each, fn=None) for each in loaded] == [*declared]
    values = {each.name: [getattr(loaded[0], each.name) != getattr(one, each.name) for one in loaded]
              for each in fields(Reward)}  # fmt: skip
    assert all(
        any(values[name]) for name in ("calling", "counterfactuals", "has_state", "is_async", "columns")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os._exit(3)", r"rewards mine can't be started; .* \(status 3\)"),
        ("import ctypes; ctypes.string_at(0)", r"rewards mine can't be started; .* \(status -11\)"),
        ("import sys; sys.exit()", r"rewards\.mine: .*mine\.py does not import: SystemExit"),
        ("1 / 0", r"rewards\.mine: .*mine\.py does not import: ZeroDivisionError"),
    ],
)
def test_an_import_that_ends_its_process_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    specs = {"accuracy": RewardSpec(), "mine": RewardSpec(fn=f"{tmp_path}/mine.py:mine")}
    with pytest.raises(ValueError, match=message):
        load_rewards(specs, WorkerSettings())


def test_an_import_that_forks_loads_once(tmp_path: Path, made: list[RewardSet]) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nfrom rewards import reward\nos.fork()\n@reward\ndef mine(rollout): return 1.0\n"
    )
    made.append(load_rewards({"mine": RewardSpec(fn=f"{tmp_path}/mine.py:mine")}, WorkerSettings()))
    assert made[0].score([GROUP])[0].columns == {"mine": (1.0, 1.0)}


def test_what_an_import_starts_ends_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import subprocess\nfrom rewards import reward\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "@reward\ndef mine(rollout): return 1.0\n"
    )
    load_rewards({"mine": RewardSpec(fn=f"{tmp_path}/mine.py:mine")}, WorkerSettings()).close()
    wait_until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_hundreds_of_processes_end_with_the_call_that_started_them(made: list[RewardSet]) -> None:
    specs = {
        "many": RewardSpec(fn=f"{ROUGH}:starts_many", args={"num_processes": 200}, timeout_s=3.0),
        "length": RewardSpec(fn=f"{ROUGH}:length"),
    }
    made.append(load_rewards(specs, WorkerSettings()))
    pool = made[0].calls.pool
    assert pool is not None
    (table,) = made[0].score([GROUP])
    assert [failure.reward for failure in table.failures] == ["many"] * 2
    assert table.columns["length"] == (18.0, 18.0)
    wait_until(lambda: len(tree(pool.pid)) <= 1 + 4)  # the supervisor and its workers


SHADOWED = """
from grpo.workers.processes import tree
from rewards.hostile import make_group, synthetic_samples
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings
rewards = load_rewards({"mine": RewardSpec(fn="rewards.py:mine")}, WorkerSettings())
print(rewards.score([make_group(["x"], synthetic_samples({})[0])])[0].totals)
rewards.close()
try:
    load_rewards({"mine": RewardSpec(fn="rewards:mine")}, WorkerSettings())
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("first_on_path", ["the package", "the working folder, too late"])
def test_a_users_file_named_rewards_is_a_reward_and_hides_nothing(tmp_path: Path, first_on_path: str) -> None:
    (tmp_path / "rewards.py").write_text(
        "from rewards import reward\n@reward\ndef mine(rollout): return 2.0\n"
    )
    late = "" if first_on_path == "the package" else "import rewards, sys; sys.path.insert(0, '')\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", late + SHADOWED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    scored, refused = done.stdout.splitlines() or ["", done.stderr]
    assert scored == "(2.0,)", done.stderr
    assert refused == "rewards.mine: no 'mine' in rewards (did you mean 'rewards.py:mine'?)"
