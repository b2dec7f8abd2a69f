"""What the loop does between steps, and in which order, with a trainer that only notes what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo import loop as loop_module
from grpo.config.load import load_config
from grpo.evaluation import Evaluation
from grpo.loop import Loop
from grpo.run.folder import RunDir
from grpo.run.stopping import Stopped, StopRequest
from tests.support import tiny


class Run:
    """A run of five steps, of which `restored` are done before; what it did, in order."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *overrides: str,
        restored: int = 0,
        stops_in: int | None = None,
        sets: Sequence[str] = ("heldout",),
    ) -> None:
        self.done: list[str] = []
        self.stop, self.stops_in = StopRequest(), stops_in
        self.config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), "num_steps=5", *overrides])
        note = SimpleNamespace(
            restore=lambda *_: restored, save=lambda _, step, *__, **___: self.done.append(f"save {step}")
        )
        monkeypatch.setattr(loop_module, "checkpoint", note)
        monkeypatch.setattr(loop_module, "in_any_process", bool)
        monkeypatch.setattr(
            loop_module, "save_final", lambda *_, step, **__: self.done.append(f"final {step}")
        )
        self.loop = Loop(
            trainer=self.trainer(),
            evaluator=SimpleNamespace(sets=sets, run=self.evaluate),  # pyright: ignore[reportArgumentType]
            run_dir=RunDir(Path("nowhere")),
            engine=None,  # pyright: ignore[reportArgumentType]
        )

    def trainer(self) -> Any:
        def nothing(*_: Any) -> None: ...

        recorder = SimpleNamespace(
            timed=lambda _: nullcontext(), begin=nothing, draw=nothing, add=nothing, finish_step=lambda _: {},
            write_failures=nothing, write_answers=nothing, close=lambda: self.done.append("close recorder"),
        )  # fmt: skip
        return SimpleNamespace(
            config=self.config,
            step=self.step,
            recorder=recorder,
            guard=SimpleNamespace(check=nothing),
            accelerator=SimpleNamespace(is_main_process=False, wait_for_everyone=nothing),
            learner=SimpleNamespace(policy=None),
            engine=SimpleNamespace(
                sync=lambda: self.done.append("sync"),
                cancel=lambda: self.done.append("cancel engine"),
                close=lambda: self.done.append("close engine"),
            ),
            sampler=SimpleNamespace(settle=nothing, close=lambda: self.done.append("close sampler")),
            feed=SimpleNamespace(loader=SimpleNamespace(close=lambda: self.done.append("close loader"))),
            rewards=SimpleNamespace(close=lambda: self.done.append("close rewards")),
        )

    def step(self, step: int) -> None:
        self.done.append(f"step {step}")
        if step == self.stops_in:
            self.stop.name = "SIGTERM"

    def evaluate(self, engine: Any) -> Evaluation:
        self.done.append("evaluate")
        return Evaluation()


def test_what_is_due_is_done_every_so_many_steps_and_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, "eval.every_steps=2", "checkpoint.every_steps=3")
    run.loop.run(run.stop)
    assert run.done == [
        "sync", "evaluate", "step 1", "step 2", "evaluate", "step 3", "save 3", "step 4", "evaluate", "step 5",
        "evaluate", "save 5", "final 5",
    ]  # fmt: skip


def test_a_run_that_goes_on_begins_behind_its_checkpoint_with_its_weights_in_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "eval.every_steps=0", "checkpoint.every_steps=0", restored=4)
    run.loop.run(run.stop)
    assert run.done == ["sync", "step 5", "final 5"]


def test_whatever_may_take_long_between_steps_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        loop_module, "under_way", lambda what, *, is_shown: (shown.append(what), nullcontext())[1]
    )
    run = Run(monkeypatch, "checkpoint.every_steps=5")
    run.loop.run(run.stop)
    assert shown == [
        "looking for a checkpoint", "sending weights to the engine", "saving step 5", "saving nowhere/final",
    ]  # fmt: skip


def test_a_run_that_was_made_shorter_keeps_the_step_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, restored=7)
    run.loop.run(run.stop)
    assert run.done == ["sync", "final 7"]


def test_nothing_is_evaluated_without_held_out_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, "eval.every_steps=1", "checkpoint.every_steps=0", sets=())
    run.loop.run(run.stop)
    assert "evaluate" not in run.done


def test_a_run_that_is_asked_to_stop_saves_after_the_step_and_before_an_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "eval.every_steps=3", "checkpoint.every_steps=0", stops_in=2)
    with pytest.raises(Stopped, match="stopped after step 2, which is saved"):
        run.loop.run(run.stop)
    assert run.done == ["sync", "evaluate", "step 1", "step 2", "save 2"]
    run = Run(monkeypatch, "eval.every_steps=2", "checkpoint.every_steps=0", stops_in=2)
    with pytest.raises(Stopped):
        run.loop.run(run.stop)
    assert run.done[-3:] == ["save 2", "evaluate", "save 2"]


def test_signals_may_wait_for_the_steps_and_not_for_the_model_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "checkpoint.stop_within_s=7")
    seen: list[tuple[float | None, bool]] = []
    monkeypatch.setattr(
        loop_module, "save_final", lambda *_, **__: seen.append((run.stop._within_s, run.stop._has_trained))
    )
    step = run.loop.trainer.step
    monkeypatch.setattr(
        run.loop.trainer,
        "step",
        lambda number: (seen.append((run.stop._within_s, run.stop._has_trained)), step(number)),
    )
    run.loop.run(run.stop)
    assert seen == [(7, False)] * 5 + [(7, True)]


def test_closing_ends_the_processes_of_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.loop.close()
    # The sampler waits for its thread, which may wait for the engine, a reward or a clip.
    assert run.done == [
        "close recorder", "cancel engine", "close rewards", "close loader", "close sampler", "close engine",
    ]  # fmt: skip
