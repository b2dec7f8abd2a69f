"""A search with the real Optuna, over runs that end in a moment: it proposes, resumes, survives failures, reports."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from grpo.commands.sweeps.plan import Sweep, load_sweep
from grpo.commands.sweeps.search import distributions_of, run_search
from tests.commands.sweeps.test_execute import here
from tests.support import stand_in, tiny

pytest.importorskip("optuna")

FILE = """
name: small
config: [configs/demo.yaml]
overrides: [num_steps=2]
arms: {base: []}
metrics: [score]
search: {metric: reward/mean, trials: 3, seed: 1, space: SPACE}
"""
ROW = re.compile(r"\| (\d) \| \**([\d.a-z]+)\** \| ([\d.]+) \|")


@pytest.fixture(autouse=True)
def quick_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    stand_in.install(tmp_path, monkeypatch)


def sweep_in(folder: Path, *overrides: str, space: str = "{rewards.format.weight: [0.1, 0.9]}") -> Sweep:
    folder.mkdir(exist_ok=True)
    (folder / "sweep.yaml").write_text(FILE.replace("SPACE", space))
    return load_sweep(str(folder / "sweep.yaml"), [f"out={folder}/out", *overrides])


def search(sweep: Sweep, jobs: int = 1) -> dict[str, str]:
    return asyncio.run(run_search(sweep, here, [None] * jobs, say=lambda text: None))


def trials(sweep: Sweep) -> list[tuple[str, str, str]]:
    """Number, value and weight of each, from the report."""
    return ROW.findall((Path(sweep.out) / "search" / "search.md").read_text())


def test_each_trial_is_a_run_with_its_proposal_and_the_best_is_bold(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    assert search(sweep) == {}
    found = trials(sweep)
    assert [number for number, _, _ in found] == ["0", "1", "2"]
    for _, value, weight in found:  # the run's last score is twice the weight that it was given
        assert float(value) == pytest.approx(2 * float(weight), abs=1e-3) and 0.1 <= float(weight) <= 0.9
    report = (tmp_path / "out" / "search" / "search.md").read_text()
    assert f"| **{max(value for _, value, _ in found)}** |" in report and report.count("**") == 2
    assert len({weight for _, _, weight in found}) == 3


@pytest.mark.slow
def test_a_search_that_goes_on_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, halves = sweep_in(tmp_path / "whole"), sweep_in(tmp_path / "halves")
    search(whole)
    for sweep in (sweep_in(tmp_path / "halves", "search.trials=1"), halves, halves):
        search(sweep)
    assert trials(halves) == trials(whole)
    attempts = [path.read_text() for path in Path(halves.out).glob("search/*/attempts")]
    assert attempts == ["x", "x", "x"]  # the third command found nothing to do


def test_a_trial_that_was_stopped_is_finished_first(tmp_path: Path) -> None:
    hanging = sweep_in(tmp_path, "model.path=hangs")  # what the stand-in takes for its behaviour

    async def stop_it() -> None:
        task = asyncio.ensure_future(run_search(hanging, here, [None], say=lambda text: None))
        while not (tmp_path / "out" / "search" / "trial_000" / "started").exists():
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(stop_it())
    sweep = sweep_in(tmp_path)
    (proposed,) = json.loads((tmp_path / "out" / "search" / "trials.json").read_text())
    assert search(sweep) == {} and len(trials(sweep)) == 3
    number, value, weight = trials(sweep)[0]
    assert (number, float(weight)) == ("0", pytest.approx(proposed["rewards.format.weight"], abs=1e-3))
    assert (tmp_path / "out" / "search" / "trial_000" / "attempts").read_text() == "xx" and value != "open"


def test_a_failed_trial_is_named_and_the_next_command_tries_it_again(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, "model.path=fails")
    assert set(search(sweep).values()) == {"exit status 1: error: data.train: no such file"}
    assert [value for _, value, _ in trials(sweep)] == ["open"] * 3
    attempts = Path(sweep.out) / "search" / "trial_000" / "attempts"
    assert attempts.read_text() == "xx"
    search(sweep)
    assert attempts.read_text() == "xxxx" and len(trials(sweep)) == 3


def test_a_trial_without_the_metric_is_named(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, "search.metric=reward/std")
    assert search(sweep) == {f"trial_00{n} seed 0": "has no finite reward/std" for n in range(3)}
    assert [value for _, value, _ in trials(sweep)] == ["none"] * 3
    assert search(sweep) == {} and len(trials(sweep)) == 3  # the same runs would come to the same


def test_trials_in_parallel_are_all_run(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, "search.trials=5")
    assert search(sweep, jobs=3) == {} and len(trials(sweep)) == 5


def test_whole_numbers_are_proposed_where_the_config_takes_no_others(tmp_path: Path) -> None:
    space = "search.space={rollout.group_size: [4, 16], rewards.format.weight: [0, 1]}"
    sweep = sweep_in(tmp_path, space)
    assert search(sweep) == {}
    runs = [path.read_text() for path in Path(sweep.out).glob("search/*/log.txt")]
    assert len(runs) == 3
    for log in runs:
        assert re.search(r"rollout.group_size=\d+ ", log) and re.search(r"format.weight=0\.\d+", log)
    with pytest.raises(ValueError, match="search.space.rollout.group_size: .*could not be converted to Int"):
        search(sweep_in(tmp_path / "b", "search.space={rollout.group_size: [4.0, 16.0]}"))


def test_the_same_trials_are_looked_at_in_the_other_direction(tmp_path: Path) -> None:
    search(sweep_in(tmp_path))
    other = sweep_in(tmp_path, "search.direction=minimize")
    assert search(other) == {}
    lowest = min(float(value) for _, value, _ in trials(other))
    assert f"| **{lowest:.4f}** |" in (tmp_path / "out" / "search" / "search.md").read_text()


def test_the_trials_of_another_search_are_not_mixed_in(tmp_path: Path) -> None:
    search(sweep_in(tmp_path))
    with pytest.raises(ValueError, match=r"trial_000: run_dir: .* holds a run with optim.lr=\S+, not 0.5"):
        search(sweep_in(tmp_path, "optim.lr=0.5"))
    with pytest.raises(ValueError, match="search: .*trials.json holds trials of rewards.format.weight alone"):
        search(sweep_in(tmp_path, space="{optim.lr: [0.1, 0.2]}"))


def test_a_search_goes_on_in_other_ranges_than_before(tmp_path: Path) -> None:
    search(sweep_in(tmp_path))
    narrow = sweep_in(tmp_path, "search.trials=5", space="{rewards.format.weight: [0.9, 0.95]}")
    assert search(narrow) == {}
    assert all(0.9 <= float(weight) <= 0.95 for _, _, weight in trials(narrow)[3:])


SPACES = {
    "[0, 1]": (0, 1, False),
    "{low: 0.1, high: 1, log: true}": (0.1, 1, True),
    "[1, 0]": None,
    "{low: 0, high: 1, log: true}": None,
    "{low: 0.1, high: 1, log: 'no'}": None,
    "[0, 1, 2]": None,
    "[0, .inf]": None,
    "{low: 0, hihg: 1}": None,
    "3": None,
}


@pytest.mark.parametrize("text", SPACES)
def test_ranges_of_a_search(text: str, tmp_path: Path) -> None:
    sweep, expected = sweep_in(tmp_path, space=f"{{rewards.format.weight: {text}}}"), SPACES[text]
    assert sweep.search is not None
    if expected is None:
        with pytest.raises(
            ValueError, match=r"search.space.rewards.format.weight: .* is neither \[low, high\]"
        ):
            distributions_of(sweep, sweep.search)
        return
    (found,) = distributions_of(sweep, sweep.search).values()
    assert (found.low, found.high, found.log) == expected


def test_a_search_over_nothing_or_a_key_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="search.space.rewards.format.wieght: config: no setting .*wieght"):
        search(sweep_in(tmp_path, space="{rewards.format.wieght: [0, 1]}"))
    with pytest.raises(ValueError, match="search: space is empty"):
        search(sweep_in(tmp_path, space="{}"))


def test_a_file_without_a_search_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the sweep file has no section `search`"):
        search(sweep_in(tmp_path, "search=null"))
