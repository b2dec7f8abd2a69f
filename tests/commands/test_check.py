"""`egogrpo check`, as its users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grpo.commands.check import main, read_arguments

ROOT = Path(__file__).parents[2]
REMEMBERS = "-      memory                it remembers what it saw: "
FORGETS = "ok     memory                none: the same values twice"

FLAWED = """
import random

from rewards import group_reward, reward

calls = []


@reward
def raises(rollout):
    return int(rollout.text[:1] or 0) / 9


@reward
def random_reward(rollout):
    return random.random()


@reward
def counts_calls(rollout):
    calls.append(rollout)
    return float(len(calls) % 1000)


class Remembers:
    def __init__(self):
        self.calls = 0

    @reward
    def __call__(self, rollout):
        self.calls += 1
        return float(self.calls % 1000)


made_before = Remembers()


class Novelty:
    def __init__(self):
        self.seen = set()

    @reward
    def __call__(self, rollout):
        is_new = rollout.text not in self.seen
        self.seen.add(rollout.text)
        return float(is_new)


class Flat:
    @reward
    def __call__(self, rollout):
        return 0.5


class Moody:
    @reward
    def __call__(self, rollout):
        return random.random()


@group_reward
def favours_the_first(rollouts):
    return [1.0] + [0.0] * (len(rollouts) - 1)


@group_reward
def fair(rollouts, *, power: float = 1.0):
    texts = [rollout.text for rollout in rollouts]
    return [texts.count(text) ** -power for text in texts]


@reward
def silent(rollout):
    return None


@reward
def reads_gaze(rollout):
    return float(rollout.sample.columns["gaze"][0])


def trl_style(completions, solution, **kwargs):
    return [float(solution[0] in text) for text in completions]
"""


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    path = tmp_path / "flawed.py"
    path.write_text(FLAWED)
    return path


def wrong_lines(output: str) -> list[str]:
    return [line.split("  ")[1] for line in output.splitlines() if line.startswith("WRONG")]


def check(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo.commands", "check", *arguments]
    return subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fn", ["accuracy", "format", "keyframe"])
def test_the_built_ins_pass(fn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([fn]) == 0
    assert wrong_lines(capsys.readouterr().out) == []


def test_the_shipped_plugin_passes_as_its_docstring_runs_it() -> None:
    plugin = "configs/plugins/brevity.py"
    assert f"egogrpo check {plugin}:brevity target_tokens=32\n" in (ROOT / plugin).read_text()
    done = check(f"{plugin}:brevity", "target_tokens=32")
    assert (done.returncode, done.stderr, wrong_lines(done.stdout)) == (0, "", [])
    assert "with one rollout at a time (@reward)" in done.stdout
    assert "0 to 1; None for 0 of" in done.stdout and "ms a call" in done.stdout


def test_a_file_in_the_working_directory_is_found_and_its_exception_shown(flawed: Path) -> None:
    done = check("flawed.py:raises", cwd=flawed.parent)
    assert done.returncode == 1
    assert wrong_lines(done.stdout) == ["hostile completions"]
    assert "'right' of probe-choice: ValueError: invalid literal for int()" in done.stdout
    assert "Traceback (most recent call last):" in done.stdout and "in raises" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["random_reward"], ["deterministic", "ignores the others"]),
        (["counts_calls"], ["deterministic", "ignores the others"]),
        (["favours_the_first"], ["follows the order"]),
        (["silent"], ["range"]),
        (["reads_gaze"], ["hostile completions", "range"]),
        (["reads_gaze", "column.gaze=[0.5, 1]"], []),
        (["fair"], []),
        (["fair", "power=5e-1"], []),
        (["trl_style"], []),
    ],
)
def test_each_flaw_has_its_line(
    flawed: Path, arguments: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([f"{flawed}:{arguments[0]}", *arguments[1:]])
    assert wrong_lines(capsys.readouterr().out) == wrong
    assert status == (1 if wrong else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acuracy"], "did you mean 'accuracy'?"),
        (["nowhere.py:fn"], "no file nowhere.py"),
        (["accuracy", "tolerence=1"], "no argument 'tolerence' (did you mean 'tolerance'?)"),
        (["accuracy", "tolerance"], "'tolerance' is not key=value"),
        (["accuracy", "tolerance=[1"], "tolerance=[1"),
        (["accuracy", "tolerance=much"], ""),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == (1 if message else 0)


def test_knobs_and_columns_are_read_as_in_a_config() -> None:
    pairs = ["a=no", "b=010", "c=1e-3", "column.d=[true, 1:30]", "c=2"]
    assert read_arguments(pairs) == ({"a": "no", "b": "010", "c": 2}, {"d": [True, "1:30"]})


def test_a_column_that_is_missing_is_named_with_how_to_give_it(
    flawed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{flawed}:reads_gaze"]) == 1
    assert (
        "KeyError: 'gaze'; is that a column of the data? then add column.gaze=VALUE"
        in capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.parametrize("fn", ["sees_motion", "rarity", "Novelty", "needs_eyes", "trl_style"])
def test_the_plugin_of_every_kind_passes(fn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{ROOT}/configs/plugins/kinds.py:{fn}"]) == 0
    assert wrong_lines(capsys.readouterr().out) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        (["exits_on", "word=hand"], "exited with status 3"),
        (["crashes_on", "word=hand"], "killed by signal 11"),
    ],
)
def test_a_reward_that_ends_its_process_ends_the_check_with_a_line(
    arguments: list[str], detail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{ROOT}/tests/support/plugins/rough.py:{arguments[0]}", *arguments[1:]]) == 1
    out = capsys.readouterr().out
    assert wrong_lines(out) == ["hangs or dies"] and detail in out


@pytest.mark.parametrize(
    ("fn", "wrong", "lines"),
    [
        ("Remembers", [], ["ok     deterministic", "-      ignores the others", REMEMBERS, "1 to "]),
        (
            "Novelty",
            [],
            ["ok     deterministic", "ok     ignores the others", REMEMBERS, "0 to 1; None for 0"],
        ),
        ("Flat", [], ["ok     deterministic", "ok     ignores the others", FORGETS, "no signal here"]),
        ("Moody", ["deterministic"], ["-      ignores the others", "-      memory"]),
        ("made_before", [], ["-      deterministic", REMEMBERS]),
    ],
)
def test_a_class_with_a_memory_is_told_from_one_without_signal(
    flawed: Path, fn: str, wrong: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{flawed}:{fn}"]) == bool(wrong)
    out = capsys.readouterr().out
    assert wrong_lines(out) == wrong
    assert all(line in out for line in lines), out


def test_a_file_whose_import_ends_its_process_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ends.py").write_text("import os; os._exit(3)")
    assert main([f"{tmp_path}/ends.py:fn"]) == 1
    assert "rewards fn can't be started" in capsys.readouterr().err
