"""The pool of supervised workers: values, limits, and what it survives. Rewards and decoders test it further."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from grpo.workers.memory_file import MemoryFile, array_at, read
from grpo.workers.pool import CallFailed, Pool, PoolLost
from tests.support import called, tiny
from tests.support.processes import is_running, wait_until

MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    made: list[Pool] = []

    def make(*functions: Callable[[Any], Any], base_workers: int = 2, max_workers: int = 2) -> Pool:
        made.append(
            Pool(
                "the tests' processes",
                partial(called.load, *functions),
                base_workers=base_workers,
                max_workers=max_workers,
            )
        )
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def test_calls_give_their_values_in_whatever_order(make_pool: MakePool) -> None:
    pool = make_pool(called.square, called.sleep)
    slow = pool.submit(1, 0.2)
    futures = [pool.submit(0, number) for number in range(100)]
    assert [future.result(60) for future in futures] == [number**2 for number in range(100)]
    assert slow.result(60) in pool.pids


def test_an_exception_comes_with_its_traceback(make_pool: MakePool) -> None:
    pool = make_pool(called.divide, called.give_a_function)
    with pytest.raises(CallFailed, match=r"(?s)in divide.*ZeroDivisionError"):
        pool.submit(0, 0).result(60)
    with pytest.raises(CallFailed, match="pickle"):  # a value that can't be sent
        pool.submit(1, None).result(60)
    assert pool.submit(0, 4).result(60) == 0.25


@pytest.mark.parametrize("function", [called.sleep, called.spin, called.ignore_sigterm])
def test_a_call_ends_at_its_limit_and_its_worker_with_it(
    make_pool: MakePool, function: Callable[[Any], Any]
) -> None:
    pool = make_pool(function, base_workers=1, max_workers=1)
    pool.submit(0, 0.0).result(60)
    (worker,) = pool.pids
    late, after = pool.submit(0, 1000.0, limit_s=0.5), pool.submit(0, 0.0)
    with pytest.raises(CallFailed, match=r"no value after \d+\.\d s"):
        late.result(60)
    after.result(60)
    assert not is_running(worker)
    assert pool.num_deaths == 0


def test_a_call_that_is_cancelled_ends_at_once(make_pool: MakePool) -> None:
    pool = make_pool(called.sleep, base_workers=1, max_workers=1)
    running, queued = pool.submit(0, 1000.0), pool.submit(0, 1000.0)
    wait_until(lambda: pool.pids)
    (worker,) = pool.pids
    pool.cancel([running, queued])
    assert running.cancelled() and queued.cancelled()
    assert pool.submit(0, 0.0).result(60) != worker
    assert not is_running(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_run_costs_no_call(
    make_pool: MakePool, number: signal.Signals
) -> None:
    pool = make_pool(called.sleep, base_workers=1, max_workers=1)
    pool.submit(0, 0.0).result(60)
    supervisor, future = pool.pid, pool.submit(0, 0.3)
    for pid in (supervisor, *pool.pids):
        os.kill(pid, number)
    future.result(60)
    assert pool.pid == supervisor and is_running(supervisor)


def test_workers_that_are_killed_by_others_cost_no_call(make_pool: MakePool) -> None:
    pool = make_pool(called.square, base_workers=4, max_workers=4)
    pool.submit(0, 1).result(60)
    picks = random.Random(0)
    for _ in range(5):
        futures = [pool.submit(0, number) for number in range(200)]
        os.kill(picks.choice(pool.pids), signal.SIGKILL)
        assert [future.result(60) for future in futures] == [number**2 for number in range(200)]


@pytest.mark.parametrize(("num_hanging", "max_workers"), [(1, 8), (1, 1), (3, 2)])
def test_functions_that_hang_in_all_workers_leave_others_one(
    make_pool: MakePool, num_hanging: int, max_workers: int
) -> None:
    hang = [called.spin, called.sleep, called.ignore_sigterm][:num_hanging]
    base = min(2, max_workers)
    pool = make_pool(called.square, *hang, base_workers=base, max_workers=max_workers)
    hanging = [pool.submit(1 + n % num_hanging, 1000.0) for n in range(20)]
    wait_until(lambda: len(pool.pids) >= base)
    assert pool.submit(0, 3).result(60) == 9
    pool.cancel(hanging)


def test_a_coroutine_that_ends_its_process_costs_its_own_call(make_pool: MakePool) -> None:
    pool = make_pool(called.exit_on_zero)
    futures = [pool.submit(0, number) for number in range(4)]
    with pytest.raises(CallFailed, match="exited with status 3"):
        futures[0].result(60)
    assert [future.result(60) for future in futures[1:]] == [1, 2, 3]


@pytest.mark.slow
def test_a_supervisor_that_falls_silent_is_replaced_with_its_workers(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.workers.pool.SILENCE_S", 8.0)
    pool = make_pool(called.square, called.sleep)
    underway = pool.submit(1, 3.0)
    assert pool.submit(0, 2).result(60) == 4
    before = [pool.pid, *pool.pids]
    psutil.Process(pool.pid).suspend()
    assert pool.submit(0, 3).result(60) == 9
    assert underway.result(60) in pool.pids
    assert not any(map(is_running, before))


def test_functions_that_do_not_load_are_said() -> None:
    pool = Pool("the tests' processes", called.refuse, base_workers=1, max_workers=1)
    with pytest.raises(PoolLost, match="no such function"):
        pool.wait_until_ready()
    with pytest.raises(PoolLost, match="no such function"):
        pool.submit(0, 1).result(60)
    pool.close()


def test_a_closed_pool_says_so_to_those_who_wait(make_pool: MakePool) -> None:
    pool = make_pool(called.sleep)
    future = pool.submit(0, 1000.0)
    pool.close()
    pool.close()
    with pytest.raises(PoolLost, match="the pool of the tests' processes is closed"):
        future.result(60)


def test_a_worker_imports_what_its_functions_need_and_no_torch(make_pool: MakePool) -> None:
    imported = make_pool(called.modules).submit(0, None).result(60)
    assert "grpo.workers.worker" in imported
    assert imported & {"torch", "transformers", "pytest", "grpo.train"} == set()


SCRIPT = """
print("once")
from functools import partial
from grpo.workers.pool import Pool
from tests.support import called
pool = Pool("processes", partial(called.load, called.square), base_workers=1, max_workers=1)
print(pool.submit(0, 5).result(60))
pool.close()
"""


@pytest.mark.parametrize("how", ["a file without a guard", "standard input"])
def test_a_script_is_not_run_again_by_its_workers(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-" if how == "standard input" else str(tmp_path / "script.py")]
    done = subprocess.run(
        command,
        input=SCRIPT,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("once\n25\n", 0), done.stderr


def test_a_file_in_memory_is_read_where_it_was_written_and_mapped_beyond_its_end() -> None:
    file, array = MemoryFile(), np.arange(100_000)
    first, second = file.append(b"abc"), file.append(array)
    assert read(first) == b"abc"
    assert (np.frombuffer(read(second), array.dtype) == array).all()
    mapped = array_at(first, (3,))
    file.close()
    assert bytes(mapped) == b"abc"
    with pytest.raises(OSError):
        read(first)
