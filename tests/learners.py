"""The real Learner without a run: one update of the tiny policy, its figures and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from grpo.learner import Behind, Learner
from grpo.learner_settings import LossConfig, OptimConfig
from grpo.losses import StepCounts
from grpo.packing import PackedRow, padding_row
from grpo.policy import Policy
from grpo.tally import Tally
from tests import tiny
from tests.runs import reset_process_state


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Log-probs of an earlier policy than the one that is updated, as from the second iteration on."""

    old_logps_T: Tensor


class KeepsGradients(Learner):
    """Leaves the gradient where the test can see it, and the weights as they are."""

    behind: Fixed | None = None

    def _step(self, tally: Tally) -> None:
        pass

    def _behind(self, row: PackedRow, scores: Any, kept_T: Tensor, tally: Tally) -> Behind:
        if self.behind is None:
            return super()._behind(row, scores, kept_T, tally)
        earlier = scores._replace(logps_T=self.behind.old_logps_T)
        return super()._behind(row, earlier, kept_T, tally)


def make_learner(
    policy: Policy,
    *,
    loss: LossConfig,
    optim: OptimConfig | None = None,
    reference: Policy | None = None,
    kind: type[Learner] = Learner,
) -> Any:
    reset_process_state()
    return kind(
        policy,
        Accelerator(cpu=True, mixed_precision="no"),
        loss=loss,
        optim=optim or OptimConfig(),
        num_steps=10,
        load_reference=(lambda _: reference) if loss.beta and reference is not None else None,
    )


def updated(
    policy: Policy,
    rows: Sequence[PackedRow],
    counts: StepCounts,
    *,
    loss: LossConfig,
    reference: Policy | None = None,
    behind: Fixed | None = None,
) -> dict[str, float]:
    """The figures of an update that leaves its gradient on the policy, and the weights alone."""
    learner = make_learner(policy, loss=loss, reference=reference, kind=KeepsGradients)
    learner.behind = behind
    tally = Tally()
    learner.update(rows, padding(), counts, 1, tally)
    return tally.reduced(lambda part: [part])


def padding() -> PackedRow:
    family = tiny.family()
    return padding_row(family.eos_ids[0], positions=family.positions)
