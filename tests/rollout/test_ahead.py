"""The next step's prompts, made during an update: no failure there costs the step that was learned, or hangs a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from grpo.feed.prompts import Feed
from grpo.groups import Batch
from grpo.learner.update import Learner
from grpo.media.decode_pool import DecodePool
from grpo.rollout.ahead import Ahead
from grpo.run.folder import checkpoint_steps, read_rows
from tests.support import runs

RUN = (
    *("num_steps=2", "optim.prompts_per_step=2", "rollout.group_size=2"),
    *("eval.every_steps=0", "checkpoint.every_steps=1", "media.prefetch_steps=0", "media.cache_gib=0"),
)


def test_an_error_in_prompts_is_that_of_the_step_which_they_are_of() -> None:
    def fail(step: int, _: Any) -> Batch:
        raise ValueError(f"no step {step}")

    ahead = Ahead(fail, is_on=True)
    ahead.start(2)
    ahead.settle(lambda: False)
    with pytest.raises(ValueError, match="no step 2"):
        ahead.take(2)
    ahead.close()


def before_step_2(monkeypatch: pytest.MonkeyPatch, does: Callable[[], object]) -> None:
    """Have something done in the thread that makes step 2's prompts."""
    batch = Feed.batch

    def wrapped(feed: Feed, step: int) -> Batch:
        if step == 2:
            does()
        return batch(feed, step)

    monkeypatch.setattr(Feed, "batch", wrapped)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of order")


def test_a_step_is_recorded_and_saved_when_the_next_ones_prompts_fail(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step_2(monkeypatch, fail)
    with pytest.raises(SystemExit, match="out of order; the newest checkpoint is of step 1"):
        runs.run(tmp_path, clips, *RUN)
    runs.reset_process_state()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("is_asked_to_stop", [False, True])
def test_a_run_ends_while_a_file_of_the_next_step_hangs(
    is_asked_to_stop: bool, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an error in the update, before which nothing is saved, or by a signal, after a checkpoint."""
    is_hanging, is_closed, close = Event(), Event(), DecodePool.close

    def hang() -> None:
        is_hanging.set()
        if is_asked_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        # As a file system does, until nobody reads any more.
        assert is_closed.wait(60)

    def close_and_tell(pool: DecodePool) -> None:
        close(pool)
        is_closed.set()

    def fail_meanwhile(*_: Any, **__: Any) -> None:
        assert is_hanging.wait(60)
        fail()

    before_step_2(monkeypatch, hang)
    monkeypatch.setattr(DecodePool, "close", close_and_tell)
    if not is_asked_to_stop:
        monkeypatch.setattr(Learner, "update", fail_meanwhile)
    with pytest.raises(SystemExit) as ended:
        runs.run(tmp_path, clips, *RUN)
    runs.reset_process_state()
    assert (ended.value.code == os.EX_TEMPFAIL) is is_asked_to_stop
    assert checkpoint_steps(tmp_path / "checkpoints") == ([1] if is_asked_to_stop else [])
