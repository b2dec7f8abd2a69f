"""The loop of a run: from the latest checkpoint to the last step, and what is due between steps.

What a step does is in `trainer.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from grpo.evaluation import Evaluator
from grpo.rollout import Engine
from grpo.rollout.sampler import in_any_process
from grpo.run import checkpoint
from grpo.run.final_model import save_final
from grpo.run.folder import RunDir, Score
from grpo.run.model_inputs import ModelInputs
from grpo.run.progress import under_way
from grpo.run.recorder import held_out_score
from grpo.run.stopping import Stopped, StopRequest
from grpo.trainer import GRPOTrainer


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The loop over a trainer's steps, with the evaluations and checkpoints that are due between them."""

    trainer: GRPOTrainer
    evaluator: Evaluator
    run_dir: RunDir
    engine: Engine
    """The engine that answers held-out questions; the trainer's own, unless completions are given."""

    def run(self, stop: StopRequest) -> None:
        """Train from the latest checkpoint, or from the start, to the last step; then save the model.

        A run that is asked to stop raises Stopped after a step, with a checkpoint.
        """
        trainer, config = self.trainer, self.trainer.config
        stop.training_begins(config.checkpoint.stop_within_s)
        try:
            last_step = self._resume()
            if last_step == 0:
                self._finish_step(0, stop)
            for step in range(last_step + 1, config.num_steps + 1):
                with trainer.recorder.timed("time/step"):
                    trainer.step(step)
                    trainer.sampler.settle(stop.is_asked)
                self._finish_step(step, stop)
        finally:
            stop.training_ends()
        with self._under_way(f"saving {self.run_dir.final}"):
            save_final(
                self.run_dir.final,
                trainer.learner.policy,
                dtype=getattr(torch, config.checkpoint.final_dtype),
                step=max(last_step, config.num_steps),
                inputs=ModelInputs.of(config),
                writes=trainer.accelerator.is_main_process,
            )
        trainer.recorder.draw()

    def close(self) -> None:
        """End the processes of the run's parts, and what is under way in them."""
        self.trainer.recorder.close()
        # The next step may be being sampled, whose groups nobody takes any more: whatever it waits for is ended first.
        self.trainer.engine.cancel()
        self.trainer.rewards.close()
        self.trainer.feed.loader.close()
        self.trainer.sampler.close()
        self.trainer.engine.close()

    def _resume(self) -> int:
        """Load the latest checkpoint, and return its step; 0 if there is none."""
        with self._under_way("looking for a checkpoint"):
            last_step = checkpoint.restore(self.run_dir.checkpoints, self.trainer.accelerator)
        self.trainer.recorder.begin(last_step)
        # The engine has loaded the model's folder, which has neither the resumed nor the 4-bit weights.
        with self._under_way("sending weights to the engine"):
            self.trainer.engine.sync()
        self.trainer.sampler.version = last_step
        return last_step

    def _finish_step(self, step: int, stop: StopRequest) -> None:
        """Evaluate where it is due, write the step's row of metrics, and save a checkpoint where one is due.

        The run is stopped if a figure is wrong, or if a process was asked to stop.
        """
        trainer, config = self.trainer, self.trainer.config
        if self.evaluator.sets and self._is_due(step, config.eval.every_steps):
            # The evaluation may take longer than a run that is asked to stop may go on.
            if step and in_any_process(stop.is_asked()):
                self._save(step)
            self._evaluate(step)
        row = trainer.recorder.finish_step(step)
        trainer.guard.check(step, row)
        # All processes stop, or none does.
        stops = in_any_process(stop.is_asked())
        if step and (stops or self._is_due(step, config.checkpoint.every_steps)):
            self._save(step, held_out_score(row, config))
        if stops:
            trainer.recorder.draw()
            # A process that is gone before another has left its training would be taken for one that failed.
            trainer.accelerator.wait_for_everyone()
            raise Stopped(f"stopped after step {step}" + (", which is saved" if step else ""))

    def _evaluate(self, step: int) -> None:
        recorder = self.trainer.recorder
        with recorder.timed("time/eval"):
            found = self.evaluator.run(self.engine)
        recorder.add(found.metrics)
        recorder.write_failures(step, found.lost, found.failures)
        recorder.write_answers(step, found.answers)

    def _save(self, step: int, score: Score | None = None) -> None:
        keep = self.trainer.config.checkpoint.keep
        with self._under_way(f"saving step {step}"):
            checkpoint.save(self.run_dir.checkpoints, step, self.trainer.accelerator, keep=keep, score=score)

    def _under_way(self, what: str) -> AbstractContextManager[None]:
        return under_way(what, is_shown=self.trainer.accelerator.is_main_process)

    def _is_due(self, step: int, every_steps: int) -> bool:
        """Return whether what is due every so many steps, and after the last step, is due now; 0 means never."""
        return every_steps > 0 and (step % every_steps == 0 or step == self.trainer.config.num_steps)
