"""A step's decisions, with what it puts together replaced by the least that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor

from grpo import trainer as trainer_module
from grpo.config.load import load_config
from grpo.groups import Batch, Group, Prompt, RewardTable, ScoredGroup
from grpo.learner.losses import StepCounts
from grpo.learner.update import UpdateResult
from grpo.packing import PackedRow
from grpo.policy.sequence_split import ALONE
from grpo.rollout import Sampling
from grpo.trainer import GRPOTrainer
from tests.support import tiny
from tests.support.runs import reset_process_state

TOTALS = (1.0, 0.0, 5.0), (0.1 + 0.2, 0.3, 0.3), (2.0, None, 4.0)
"""Of three groups, whose completions have 3, 4 and 5 tokens, then 6, 7, 8 and 9, 10, 11. The second one is flat."""

CUT_OFF = 5
"""The length of the completion that hit the token limit."""


class Step:
    """What a trainer did in a step: the rows of its update, those that it only watched, and its counts."""

    def __init__(
        self, overrides: Sequence[str] = (), totals: Sequence[Sequence[float | None]] = TOTALS
    ) -> None:
        reset_process_state()
        self.totals, self.asked = totals, []
        self.rows: list[int] = []
        self.watched: list[int] = []
        self.advantages: dict[int, float] = {}
        config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *overrides])
        self.did: list[str] = []
        self.prepared: list[int] = []
        self.is_prepared = Event()
        learner = SimpleNamespace(
            policy=SimpleNamespace(family=tiny.family()),
            update=self.update,
            reference_logps_of_own=self.reference_logps,
            split=ALONE,
        )
        GRPOTrainer(
            config,
            accelerator=Accelerator(cpu=True),
            learner=learner,  # pyright: ignore[reportArgumentType]
            engine=SimpleNamespace(  # pyright: ignore[reportArgumentType]
                prepare=self.prepare,
                generate=self.generate,
                sleep=lambda: self.did.append("sleep"),
                sync=lambda: self.did.append("sync"),
            ),
            sampling=Sampling(group_size=3, max_new_tokens=24, temperature=1.0),
            feed=SimpleNamespace(  # pyright: ignore[reportArgumentType]
                batch=self.batch, others=self.others, render=None, max_prompt_tokens=1, memory=None
            ),
            rewards=SimpleNamespace(  # pyright: ignore[reportArgumentType]
                counterfactuals=(), normalise=False, scoring=lambda _: self
            ),
            guard=SimpleNamespace(watch=lambda *_, **__: []),  # pyright: ignore[reportArgumentType]
            recorder=SimpleNamespace(  # pyright: ignore[reportArgumentType]
                timed=lambda _: nullcontext(),
                add=self.nothing,
                append_failures=self.nothing,
                write_groups=self.write_groups,
            ),
        ).step(7)

    def nothing(self, *_: Any) -> None:
        pass

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None:
        self.prepared += [step] * len(prompts)
        if step == 8:
            self.is_prepared.set()

    def batch(self, step: int) -> Batch:
        return self.others(step, 0, range(len(self.totals)))

    def others(self, step: int, attempt: int, places: Sequence[int]) -> Batch:
        self.asked.append((step, attempt, [*places]))
        prompts = [tiny.prompt(tiny.sample(f"{place}/{attempt}"), None) for place in places]
        seeds = tuple(range(len(prompts)))
        return Batch(prompts=tuple(prompts), seeds=seeds, places=tuple(places), lost=())

    def generate(self, prompts: Sequence[Any], *_: Any, on_group: Callable[[Group], None]) -> list[Group]:
        groups = []
        for prompt in prompts:
            place = int(prompt.sample.id[0])
            rollouts = [tiny.rollout(prompt, [7] * (3 * place + length)) for length in (3, 4, 5)]
            cut = [replace(each, stopped=len(each.token_ids) != CUT_OFF) for each in rollouts]
            groups.append(Group(prompt=prompt, rollouts=tuple(cut)))
        return groups

    def tables(self, groups: Sequence[Group]) -> list[RewardTable]:
        return [tiny.table(tuple(self.totals[int(group.prompt.sample.id[0])])) for group in groups]

    def add(self, group: Group) -> None:
        pass

    def update(
        self, rows: Sequence[PackedRow], counts: StepCounts, step: int, *, watched: Sequence[PackedRow]
    ) -> UpdateResult:
        # The next step's prompts are made meanwhile, by another thread.
        self.was_prepared = self.is_prepared.wait(30)
        self.did.append("update")
        self.counts = counts
        self.rows, self.watched = self.lengths(rows), self.lengths(watched)
        for row in rows:
            self.advantages |= dict(zip(row.lengths_T.tolist(), row.advantages_T.tolist(), strict=True))
        return UpdateResult()

    def reference_logps(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        self.did.append("reference")
        return [row.sampler_logps_T for row in rows]

    def lengths(self, rows: Sequence[PackedRow]) -> list[int]:
        return sorted({int(length) for row in rows for length in row.lengths_T})

    def write_groups(self, step: int, scored: Sequence[ScoredGroup], lost: Any, logps: Any) -> None:
        self.written = scored


def test_flat_groups_and_completions_without_a_total_are_watched_and_not_trained_on() -> None:
    step = Step()
    assert step.rows == [3, 4, 5, 9, 11] and step.watched == [6, 7, 8, 10]
    # 1, 0 and 5: mean 2, std 2.16025; 2 and 4: std 1.
    assert [step.advantages[length] for length in (3, 4, 5)] == pytest.approx(
        [-1 / 2.16035, -2 / 2.16035, 3 / 2.16035], rel=1e-4
    )
    assert [step.advantages[length] for length in (9, 11)] == pytest.approx([-1 / 1.0001, 1 / 1.0001])
    assert (step.counts.num_completions, step.counts.num_tokens) == (8, 3 + 4 + 5 + 6 + 7 + 8 + 9 + 11)


@pytest.mark.parametrize("term", ["loss.entropy_coef=0.1", "loss.beta=0.1"])
def test_a_term_with_a_gradient_of_its_own_trains_on_flat_groups_too(term: str) -> None:
    step = Step([term])
    assert step.rows == [3, 4, 5, 6, 7, 8, 9, 11] and step.watched == [10]


def test_the_engine_sleeps_before_the_references_pass_and_gets_weights_last() -> None:
    step = Step(["loss.beta=0.1", "loss.kl_in_reward=true"])
    assert step.did == ["sleep", "reference", "update", "sync"]


def test_a_completion_that_was_cut_off_is_masked_if_the_config_says_so() -> None:
    step = Step(["loss.mask_truncated_completions=true"])
    assert step.rows == [3, 4, 9, 11] and step.watched == [5, 6, 7, 8, 10]
    assert (step.counts.num_completions, step.counts.num_tokens) == (8, 3 + 4 + 6 + 7 + 8 + 9 + 11)


def test_the_smallest_std_that_counts_is_the_configs() -> None:
    assert Step(["advantages.min_std=1.5"]).rows == [3, 4, 5]
    assert Step(["advantages.min_std=0.5"]).rows == [3, 4, 5, 9, 11]


def test_the_batch_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has a completion with a total of 100, a token count of 50, and no flat group."""

    def gather(own: list[Any]) -> list[Any]:
        if not own or isinstance(own[0], tuple):
            return [*own, (1, 50)]
        return [*own, 100.0] if isinstance(own[0], float) else own

    monkeypatch.setattr(trainer_module, "gather_object", gather)
    step = Step(["advantages.scale=batch", "advantages.baseline=loo"])
    # 1, 0, 5, 0.3, 0.3, 0.3, 2, 4 and 100: population std 30.9659
    assert step.advantages[5] == pytest.approx(3 * 1.5 / 30.966, rel=1e-3)
    assert (step.counts.num_completions, step.counts.num_tokens) == (9, 103)


def test_flat_groups_are_asked_again_as_often_as_allowed_and_others_stay() -> None:
    step = Step(["dynamic_sampling.max_resample_times=2"])
    assert step.asked == [(7, 0, [0, 1, 2]), (7, 1, [1]), (7, 2, [1]), (8, 0, [0, 1, 2])]
    # Each question's inputs are begun for the step that it is of, and those of the next one during the update.
    assert step.prepared == [7, 7, 7, 7, 7, 8, 8, 8] and step.was_prepared
    assert [each.group.prompt.sample.id for each in step.written] == ["0/0", "1/0", "2/0"]
