"""Rewards in processes of their own: the same values, and nothing that a reward does reaches the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.groups import Group
from rewards.hostile import COMPLETIONS, make_group, synthetic_samples
from rewards.scoring.runner import RewardSet, load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings
from tests.support import tiny

PLUGINS = Path(__file__).parents[2] / "support" / "plugins"
SAMPLE = replace(synthetic_samples({})[0], columns={"weights": [1, 2]})

Load = Callable[..., RewardSet]


def spec(function: str, **fields: Any) -> RewardSpec:
    return RewardSpec(fn=f"{PLUGINS / 'rough.py'}:{function}", **fields)


def groups(num_groups: int = 4, group_size: int = 4) -> list[Group]:
    """Completions of increasing length, each of its own."""
    return [
        make_group([f"{'x' * (10 * p + g)} {p}-{g}." for g in range(group_size)], SAMPLE)
        for p in range(num_groups)
    ]


@pytest.fixture
def load() -> Iterator[Load]:
    made: list[RewardSet] = []

    def load_in_workers(specs: dict[str, RewardSpec], workers: WorkerSettings | None = None) -> RewardSet:
        made.append(load_rewards(specs, workers or WorkerSettings()))
        return made[-1]

    yield load_in_workers
    for each in made:
        each.close()


def test_workers_give_what_the_own_process_gives(load: Load) -> None:
    specs = {name: RewardSpec() for name in ("accuracy", "graded_accuracy", "consistency", "self_evidence")}
    many = [make_group([*COMPLETIONS.values()], sample) for sample in synthetic_samples({})]
    assert load(specs).score(many) == load_rewards(specs).score(many)


def test_results_come_in_order_whatever_the_order_of_completion(load: Load) -> None:
    rewards = load({"length": spec("length"), "slow": spec("sleeps", args={"seconds": 0.01})})
    many = groups(8, 8)
    tables = rewards.score(many)
    assert [table.columns["length"] for table in tables] == [
        tuple(float(len(rollout.text)) for rollout in group.rollouts) for group in many
    ]


def test_waiting_rewards_wait_together(load: Load) -> None:
    # 32 calls of 0.2 s are 6.4 s one after another. A ratio to itself, not to a clock.
    rewards = load({"slow": spec("sleeps", args={"seconds": 0.2})})
    rewards.score(groups(1, 1))
    started = time.monotonic()
    assert rewards.score(groups(8, 4))[0].columns["slow"] == (1.0,) * 4
    assert time.monotonic() - started < 0.8 * 32 * 0.2


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_a_hang_costs_its_time_limit_and_its_own_completion(load: Load, busy: bool) -> None:
    specs = {
        "length": spec("length"),
        "hangs": spec("hangs_on", args={"word": "2-1.", "busy": busy}, timeout_s=2.0),
    }
    rewards = load(specs)
    for _ in range(2):  # the second step finds workers as good as new
        tables = rewards.score(groups())  # comes back at all, though the call never does
        assert [table.columns["length"][0] for table in tables] == [4.0 + 1, 14.0 + 1, 24.0 + 1, 34.0 + 1]
        failed = [failure for table in tables for failure in table.failures]
        assert [(each.reward, each.rollout_index) for each in failed] == [("hangs", 1)]
        assert "no value 2 s after" in failed[0].summary
        assert tables[2].totals[1] is None and tables[2].totals[0] is not None


def test_all_calls_hanging_cost_one_time_limit(load: Load) -> None:
    rewards = load(
        {"hangs": spec("hangs_on", args={"word": "-"}, timeout_s=1.0)}, WorkerSettings(max_workers=4)
    )
    started = time.monotonic()
    tables = rewards.score(groups(8, 8))
    assert time.monotonic() - started < 0.5 * 64 / 4 * 1.0  # four workers, one limit after another: 16 s
    assert all(total is None for table in tables for total in table.totals)


@pytest.mark.parametrize(
    ("function", "message"), [("exits_on", "exited with status 3"), ("crashes_on", "was killed by signal 11")]
)
def test_a_process_that_dies_costs_its_own_completion(load: Load, function: str, message: str) -> None:
    rewards = load({"length": spec("length"), "dies": spec(function, args={"word": "1-2."})})
    tables = rewards.score(groups())
    failed = [failure for table in tables for failure in table.failures]
    assert [(each.reward, each.rollout_index) for each in failed] == [("dies", 2)]
    assert message in failed[0].summary
    assert tables[1].columns["dies"] == (1.0, 1.0, None, 1.0)
    assert rewards.num_deaths >= 2  # the second time it was alone
    assert all(None not in table.columns["length"] for table in tables)


def test_a_reward_that_forks_scores_once(load: Load) -> None:
    tables = load({"forks": spec("forks")}).score(groups())
    assert [table.columns["forks"] for table in tables] == [(1.0,) * 4] * 4


def test_what_a_reward_starts_ends_with_the_run(load: Load, tmp_path: Path) -> None:
    rewards = load({"starts": spec("starts_a_process", args={"pid_file": str(tmp_path / "pid")})})
    rewards.score(groups(1, 1))
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    rewards.close()
    assert eventually(lambda: not is_running(pid))


def test_megabytes_of_output_are_cut(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    tables = load({"prints": spec("prints_megabytes")}).score(groups())
    assert all(table.columns["prints"] == (1.0,) * 4 for table in tables)
    out, err = capfd.readouterr()
    assert out == "" and "x" in err and len(err) < 25_000


@pytest.mark.slow
def test_a_leak_is_bounded_and_named(load: Load) -> None:
    rewards = load(
        {"leaks": spec("leaks"), "length": spec("length")}, WorkerSettings(memory_gib=0.5, max_workers=1)
    )
    (table,) = rewards.score(groups(1, 6))
    assert None not in table.columns["length"]
    assert 1.0 in table.columns["leaks"]  # one or two fit in; a worker that is renewed takes the next
    assert sum(value is not None for value in table.columns["leaks"]) + len(table.failures) == 6
    assert all("memory_gib=0.5" in failure.summary for failure in table.failures)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in the call", "after it", "left behind"])
def test_a_leak_in_what_a_reward_starts_is_bounded(load: Load, tmp_path: Path, when: str) -> None:
    args = {"pid_file": str(tmp_path / "pid"), "when": when}
    rewards = load(
        {"leaks": spec("leaks_in_a_child", args=args, timeout_s=30.0)},
        WorkerSettings(memory_gib=0.3, max_workers=1),
    )
    (table,) = rewards.score(groups(1, 1))
    assert table.columns["leaks"] == (None if when == "in the call" else 1.0,)
    assert all("memory_gib=0.3" in failure.summary for failure in table.failures)
    assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid) or when == "in the call"
    assert eventually(lambda: not is_running(pid))  # also where nobody waits for a score


def test_no_reward_sees_what_another_one_changed(load: Load) -> None:
    rewards = load(
        {"changes": spec("changes_its_arguments"), "counts": spec("counts_weights")},
        WorkerSettings(max_workers=1),
    )
    tables = rewards.score(groups())
    assert all(table.columns["counts"] == (2.0,) * 4 for table in tables)
    assert SAMPLE.columns["weights"] == [1, 2]


def test_async_calls_run_at_the_same_time_and_stop_at_their_limit(load: Load) -> None:
    rewards = load(
        {
            "waits": spec("waits", args={"seconds": 0.2}),
            "late": spec("waits", args={"seconds": 60}, timeout_s=1.0),
            "ranks": spec("ranks"),
        }
    )
    tables = rewards.score(groups(4, 4))
    assert [table.columns["waits"] for table in tables] == [(1.0,) * 4] * 4
    assert [table.columns["ranks"] for table in tables] == [(0.0, 1.0, 2.0, 3.0)] * 4
    assert {failure.reward for table in tables for failure in table.failures} == {"late"}


@pytest.mark.slow
def test_a_blocked_event_loop_is_replaced(load: Load) -> None:
    rewards = load({"waits": spec("waits", args={"seconds": 0.01, "word": "1-1."}, timeout_s=1.5)})
    first = rewards.score(groups(2, 2))
    assert first[1].columns["waits"][1] is None
    second = rewards.score([make_group(["fine"], SAMPLE)])
    assert second[0].columns["waits"] == (1.0,)


def test_an_object_with_a_state_lives_in_one_place(load: Load) -> None:
    rewards = load({"counter": spec("Counter", args={"start": 10.0})})
    tables = rewards.score(groups(4, 4))
    numbers = sorted(value for table in tables for value in table.columns["counter"] if value is not None)
    assert numbers == [float(n) for n in range(11, 27)]


def test_an_async_object_sees_its_own_concurrency(load: Load) -> None:
    tables = load({"counter": spec("AsyncCounter")}).score(groups(2, 4))
    assert max(value or 0.0 for table in tables for value in table.columns["counter"]) == 8.0


@pytest.mark.parametrize("function", ["chat", "reads_content", "plain"])
def test_trl_rewards_get_messages_or_texts_as_they_expect(load: Load, function: str) -> None:
    (table,) = load({"trl": spec(function)}).score(groups(1, 3))
    assert table.columns["trl"] == (5.0, 6.0, 7.0)


def test_groups_are_scored_while_others_are_still_sampled(load: Load) -> None:
    rewards = load({"slow": spec("sleeps", args={"seconds": 0.3})})
    rewards.score(groups(1, 1))
    scoring = rewards.scoring()
    many = groups(2, 2)
    scoring.add(many[0])  # the engine samples the second group meanwhile
    jobs = [*scoring._jobs.values()]
    assert eventually(lambda: jobs and not any(job.missing for job in jobs))
    assert [table.columns["slow"] for table in scoring.tables(many)] == [(1.0, 1.0)] * 2


def test_a_reward_that_can_not_be_made_is_named(load: Load) -> None:
    with pytest.raises(ValueError, match=r"rewards\.counter\.args: no argument 'begin'"):
        load({"counter": spec("Counter", args={"begin": 1})})


@pytest.mark.slow
def test_the_probe_names_a_reward_that_hangs(load: Load) -> None:
    rewards = load({"hangs": spec("hangs_on", args={"word": "The hand takes"}, timeout_s=1.0)})
    with pytest.raises(ValueError, match=r"rewards\.hangs: TimeoutError: .*The hand takes the red object"):
        rewards.probe()


@pytest.mark.slow
def test_the_workers_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    script = f"""
import time
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings
from tests.rewards.scoring.test_reward_workers import groups, spec
rewards = load_rewards({{"hangs": spec("hangs_on", args={{"word": "-", "busy": True}})}}, WorkerSettings())
scoring = rewards.scoring()
scoring.add(groups(1, 1)[0])
time.sleep(3)
pool = rewards.calls.pool
open({str(tmp_path / "pids")!r}, "w").write(" ".join(map(str, [pool.pid, *pool.pids])))
time.sleep(600)
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=tiny.ROOT)
    assert eventually(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), limit_s=60)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) > 1 and all(map(is_running, pids))
    trainer.kill()
    trainer.wait()
    assert eventually(lambda: not any(map(is_running, pids)))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], object], limit_s: float = 10.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_values_are_floats_whatever_the_process(load: Load) -> None:
    (table,) = load({"length": spec("length")}).score(groups(1, 2))
    assert all(type(value) is float for value in table.columns["length"])


@pytest.mark.slow
def test_a_hang_in_an_object_leaves_the_calls_behind_it_their_time(load: Load) -> None:
    rewards = load({"object": spec("HangsOn", args={"word": "1-1."}, timeout_s=8.0)})
    tables = rewards.score(groups(4, 4))
    failed = [failure for table in tables for failure in table.failures]
    assert [each.rollout_index for each in failed] == [1]
    assert "may take a quarter of timeout_s" in failed[0].summary
    assert tables[3].columns["object"] == (1.0,) * 4


@pytest.mark.slow
def test_a_reward_that_hangs_everywhere_starves_no_other(load: Load) -> None:
    specs = {
        "hangs": spec("hangs_on", args={"word": "-"}, timeout_s=4.0),
        "length": spec("length", timeout_s=4.0),
    }
    rewards = load(specs, WorkerSettings(max_workers=2))
    rewards.score([make_group(["fast so far"], SAMPLE)])
    tables = rewards.score(groups(8, 4))
    assert {failure.reward for table in tables for failure in table.failures} == {"hangs"}


def test_an_async_reward_that_forks_answers_once(load: Load) -> None:
    (table,) = load({"forks": spec("forks_async")}).score(groups(1, 4))
    assert table.columns["forks"] == (5.0, 6.0, 7.0, 8.0)


def test_a_cancellation_that_a_library_lets_out_is_a_failure_with_its_reason(load: Load) -> None:
    (table,) = load({"cancelled": spec("is_cancelled")}).score(groups(1, 2))
    assert [each.summary for each in table.failures] == [
        "asyncio.exceptions.CancelledError: by a library"
    ] * 2


def test_a_process_that_left_its_session_ends_with_the_run(load: Load, tmp_path: Path) -> None:
    rewards = load({"daemon": spec("leaves_a_daemon", args={"pid_file": str(tmp_path / "pid")})})
    rewards.score(groups(1, 1))
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    rewards.close()
    assert eventually(lambda: not is_running(pid))


def test_the_loss_of_the_process_that_forks_costs_nothing(load: Load) -> None:
    rewards = load({"length": spec("length"), "slow": spec("sleeps", args={"seconds": 0.05})})
    rewards.score(groups(1, 2))
    pool = rewards.calls.pool
    assert pool is not None
    os.kill(pool.pid, signal.SIGKILL)
    tables = rewards.score(groups(4, 4))
    assert not [failure for table in tables for failure in table.failures]


def test_a_worker_that_is_stopped_holds_nobody_up(load: Load) -> None:
    rewards = load({"length": spec("length", timeout_s=3.0)}, WorkerSettings(max_workers=1))
    rewards.score(groups(1, 1))
    pool = rewards.calls.pool
    assert pool is not None
    os.kill(pool.pids[0], signal.SIGSTOP)
    huge = make_group(["x" * 500_000, "y"], SAMPLE)  # more than a socket takes
    rewards.score([huge])  # comes back, with another worker's values or with a time-out
    assert rewards.score(groups(1, 2))[0].columns["length"] == (5.0, 6.0)


def test_a_busy_trainer_does_not_make_workers_look_silent(load: Load) -> None:
    specs = {"counter": spec("Counter"), "slow": spec("sleeps", args={"seconds": 0.02})}
    rewards = load(specs)
    for _ in range(4):
        scoring = rewards.scoring()
        for group in groups(6, 4):
            scoring.add(group)
        end = time.monotonic() + 0.4
        while time.monotonic() < end:  # as an engine's scheduler does
            sum(range(1000))
        tables = scoring.tables(groups(0))
        assert tables == []
    (table,) = rewards.score(groups(1, 1))
    assert table.columns["counter"] == (4 * 6 * 4 + 1.0,)  # the object was never made anew


def test_a_file_named_rewards_in_the_working_directory_is_not_the_package(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("raise RuntimeError('the wrong one')")
    code = (
        "import sys; sys.path = [path for path in sys.path if path]\n"
        "from rewards.hostile import make_group, synthetic_samples\n"
        "from rewards.scoring.runner import load_rewards\n"
        "from rewards.scoring.specs import RewardSpec, WorkerSettings\n"
        "rewards = load_rewards({'format': RewardSpec()}, WorkerSettings())\n"
        "print(rewards.score([make_group(['x'], synthetic_samples({})[0])])[0].totals); rewards.close()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("(0.0,)\n", 0), done.stderr
