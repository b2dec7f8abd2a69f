"""Updates that are not finite are skipped and kept, in one process and in two; spikes are named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config.learner import LossConfig, OptimConfig
from grpo.groups import Prompt, ScoredGroup
from grpo.learner import losses
from grpo.learner import update as update_module
from grpo.learner.guards import Guard
from grpo.learner.update import Learner, UpdateResult
from grpo.packing import PackedRow
from grpo.run.folder import read_rows
from grpo.run.metrics import Metrics
from tests.support import tiny
from tests.support.launched import run_two
from tests.support.learners import counts_of, make_learner, overflowing, packed, text_groups
from tests.support.runs import reset_process_state, run


def spoiled(row: PackedRow, value: float) -> PackedRow:
    advantages_T = row.advantages_T.clone()
    advantages_T[0] = value
    return replace(row, advantages_T=advantages_T)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_leaves_no_trace(value: float) -> None:
    groups = text_groups()
    rows = packed(groups, tokens_per_row=30)
    plain, tried = (
        make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(lr=1e-3)) for _ in range(2)
    )
    bad = [*rows[:-1], spoiled(rows[-1], value)]
    result = tried.update(bad, counts_of(groups), 1)
    figures = result.metrics.reduced()
    assert result.bad_rows == [bad[-1]] and figures["optim/skipped_updates"] == result.num_skipped == 1
    assert all(map(math.isfinite, figures.values())) and "optim/grad_norm" not in figures
    for learner in (plain, tried):  # AdamW's averages are those of a first step, too
        assert learner.update(rows, counts_of(groups), 1).num_skipped == 0
    for name, weight in plain.policy.named_weights():
        assert torch.equal(weight, dict(tried.policy.named_weights())[name]), name


def test_a_gradient_that_is_not_finite_is_skipped_where_the_loss_is_finite() -> None:
    groups = text_groups()
    rows = packed(groups, tokens_per_row=30)
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=OptimConfig(lr=1e-3))
    overflow = overflowing(learner.policy)
    result = learner.update(rows, counts_of(groups), 1)
    figures = result.metrics.reduced()
    assert math.isfinite(figures["loss"]) and "optim/grad_norm" not in figures
    assert result.bad_rows == [] and figures["optim/skipped_updates"] == result.num_skipped == 1
    start = dict(tiny.policy(seed=1).named_weights())
    assert all(torch.equal(weight, start[name]) for name, weight in learner.policy.named_weights())
    overflow.remove()
    assert learner.update(rows, counts_of(groups), 1).num_skipped == 0


def test_too_many_skipped_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    limits = {"max_skipped": 2, "max_idle": 0, "spike_factor": 0.0, "process": 0}
    guard = Guard(tmp_path / "bad_rows", **limits)  # pyright: ignore[reportArgumentType]
    rows = packed(text_groups(), tokens_per_row=30)
    for norm in (math.nan, math.inf, 1.0, math.nan, math.nan):
        guard.watch(1, UpdateResult(norms=[norm]), rows)
        guard.check(1, {})
    resumed = Guard(tmp_path / "bad_rows", **limits)  # pyright: ignore[reportArgumentType]
    resumed.load_state_dict(guard.state_dict())
    resumed.watch(2, UpdateResult(norms=[math.nan], bad_rows=rows[:1]), rows)
    with pytest.raises(RuntimeError, match="gradient of 3 updates in a row was not finite"):
        resumed.check(2, {})
    stored = torch.load(tmp_path / "bad_rows" / "step_000002_process_0_row_0.pt", weights_only=True)
    first = stored["prompts"][0]
    sample, clip = rows[0].prompts[0].sample, rows[0].prompts[0].clip
    assert torch.equal(stored["input_ids_N"], rows[0].input_ids_N)
    assert torch.equal(stored["advantages_T"], rows[0].advantages_T)
    assert (first["sample"]["id"], first["sample"]["question"]) == (sample.id, sample.question)
    assert (first["clip"] is None) == (clip is None)
    assert clip is None or torch.equal(first["clip"]["frames_FHWC"], torch.tensor(clip.frames_FHWC))


def test_a_stored_row_has_the_frames_of_each_clip_once(tmp_path: Path) -> None:
    """However many prompts, completions and counterfactuals are about it."""
    clips = [tiny.clip(16, 112, 112), tiny.clip(16, 112, 112, seed=1)]
    sources = tuple(tiny.source_like(clip, number) for number, clip in enumerate(clips))
    several = tiny.sample("several", question="Both?", media=sources, clip_source=sources[0])
    prompts = [
        tiny.prompt(tiny.sample("one"), clips[0]),
        tiny.prompt(tiny.sample("other"), clips[0]),
        tiny.prompt(several, clips),
    ]
    groups = []
    for prompt in prompts:
        scored = tiny.ragged_group(prompt, [3, 5, 2, 4], seed=0)
        changed = replace(scored.group.rollouts[0], clip=tiny.clip(16, 112, 112, seed=2))
        rollouts = tuple(
            replace(each, counterfactuals={"blank": (changed,)}) for each in scored.group.rollouts
        )
        groups.append(replace(scored, group=replace(scored.group, rollouts=rollouts)))
    (row,) = packed(groups)
    guard_of(tmp_path, max_idle=0).watch(1, UpdateResult(norms=[math.nan], bad_rows=[row]), [row])
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 2 * sum(clip.frames_FHWC.nbytes for clip in clips)
    found = torch.load(file, weights_only=True)["prompts"]
    assert [each["sample"]["id"] for each in found] == [each.sample.id for each in row.prompts]
    for each, prompt in zip(found, row.prompts, strict=True):
        shown = [clip["frames_FHWC"] for clip in each["media"] or [each["clip"]]]
        expected = [torch.tensor(clip.frames_FHWC) for clip in prompt.clips]
        assert all(map(torch.equal, shown, expected)) and len(shown) == len(expected)


def test_a_gradient_far_above_the_median_is_noted_with_the_groups_of_most_weight(tmp_path: Path) -> None:
    guard = Guard(tmp_path, max_skipped=0, max_idle=0, spike_factor=10, process=0)
    rows = packed(seven_groups(), tokens_per_row=60)
    assert len(rows) > 2 and any(len(row.prompts) > 1 for row in rows)
    for norm in (1.0, 50.0, *[2.0] * 9):  # the first 10 have nothing to be compared with
        assert guard.watch(1, UpdateResult(norms=[norm]), rows) == []
    assert guard.watch(2, UpdateResult(norms=[19.0]), rows) == []
    (found,) = guard.watch(3, UpdateResult(norms=[21.0]), rows)
    assert found == {
        "step": 3,
        "kind": "grad_norm",
        "norm": 21.0,
        "median": 2.0,
        # tokens times |advantage|: 90, 40, 35, 24, 18; s3 and s4 have 3 and 12
        "sample_ids": ["s2", "s6", "s0", "s1", "s5"],
        "order": "sum of |advantage| over the group's tokens, largest first",
    }


def seven_groups() -> list[ScoredGroup]:
    """Two completions each, with advantages of either sign; s2 is split over two rows of 60 tokens."""
    groups = []
    lengths = [(30, 5), (20, 4), (30, 30), (1, 2), (9, 3), (3, 6), (4, 4)]
    sizes = [1.0, 1.0, 1.5, 1.0, 1.0, 2.0, 5.0]
    for index, (own, size) in enumerate(zip(lengths, sizes, strict=True)):
        prompt = Prompt(sample=tiny.sample(f"s{index}"), clip=None, token_ids=(1, 2, 3), tags=())
        scored = tiny.ragged_group(prompt, list(own), seed=index)
        groups.append(replace(scored, advantages=(size, -size)))
    return groups


@pytest.mark.slow
def test_a_run_goes_on_after_a_bad_update_and_says_what_was_in_it(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_updates(monkeypatch, only_second=True)
    short = ["num_steps=3", "checkpoint.every_steps=0", "optim.spike_factor=0"]  # 0: no norm is noted
    rows = run(tmp_path / "run", clips, "eval.every_steps=0", *short)
    assert [row.get("optim/skipped_updates") for row in rows[-3:]] == [0, 1, 0]
    assert rows[-2]["time/step"] > 0 and "optim/grad_norm" not in rows[-2]
    (failure,) = [
        row for row in read_rows(tmp_path / "run" / "failures.jsonl") if row["kind"] == "not_finite"
    ]
    assert failure["step"] == 2 and failure["sample_ids"] and failure["completion_tokens"]
    assert (tmp_path / "run" / "bad_rows" / failure["row"]).exists()
    spoil_updates(monkeypatch, only_second=False)
    with pytest.raises(SystemExit, match="optim.max_skipped_updates=1"):
        run(tmp_path / "stopped", clips, "eval.every_steps=0", "optim.max_skipped_updates=1")
    reset_process_state()
    assert len(read_rows(tmp_path / "stopped" / "metrics.jsonl")) == 3  # steps 0, 1 and 2


def spoil_updates(monkeypatch: pytest.MonkeyPatch, *, only_second: bool) -> None:
    """Stand for a pass that overflows: the loss of every row, or of those of one step."""
    steps: list[int] = []
    update, row_loss = Learner.update, losses.row_loss

    def counted(self: Learner, *arguments: Any, **options: Any) -> UpdateResult:
        steps.append(1)
        return update(self, *arguments, **options)

    def spoiled_loss(*arguments: Any, **options: Any) -> tuple[torch.Tensor, Metrics]:
        loss, metrics = row_loss(*arguments, **options)
        return loss if only_second and len(steps) != 2 else loss * math.nan, metrics

    monkeypatch.setattr(Learner, "update", counted)
    monkeypatch.setattr(update_module, "row_loss", spoiled_loss)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi_gpu", "zero2", "zero3", "fsdp2"])
def test_two_processes_skip_together_what_is_not_finite_in_one(kind: str, tmp_path: Path) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    run_two(kind, ["-m", "tests.support.sharded_worker", "not finite", str(tmp_path / "two.pt")], tmp_path)
    two = torch.load(tmp_path / "two.pt")
    assert two["skipped"] == [1, 1]  # one for its loss, one for its gradient alone
    assert two["figures"]["optim/skipped_updates"] == 1
    for name, weight in tiny.policy(seed=1).named_weights():
        assert torch.equal(weight, two["weights"][name]), name


def test_only_the_process_with_a_bad_row_names_rows_and_each_once(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "bad_rows", max_skipped=9, max_idle=0, spike_factor=0, process=0)
    rows = packed(text_groups(), tokens_per_row=30)
    assert guard.watch(1, UpdateResult(norms=[math.nan]), rows, is_blamed=True) == []
    twice = UpdateResult(norms=[math.nan, math.nan], bad_rows=[rows[1], rows[1]])
    assert len(guard.watch(2, twice, rows, is_blamed=True)) == 1
    assert len(guard.watch(3, UpdateResult(norms=[math.nan]), rows)) == len(
        rows
    )  # any of them may be to blame


def guard_of(folder: Path, max_idle: int) -> Guard:
    return Guard(folder, max_skipped=2, max_idle=max_idle, spike_factor=0, process=0)


IDLE = ({"groups/no_signal": 1.0, "optim/grad_norm": 0.1}, {"groups/no_signal": 0.5}, {})
"""No group has a signal, though a KL term has a gradient; the update was skipped; all groups were lost."""
TEACHES = {"groups/no_signal": 0.9, "optim/grad_norm": 0.1}


def test_a_policy_that_learns_nothing_is_warned_of_and_then_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = guard_of(tmp_path, max_idle=10)
    for step, figures in enumerate([{}, *IDLE, TEACHES, *IDLE, *IDLE, *IDLE]):
        guard.check(step, figures)
    assert capsys.readouterr().out.splitlines() == [
        f"warning: step {step}: in 2 steps in a row no group had a signal, or no update was made; the run stops after "
        "10 (optim.max_idle_steps)"
        for step in (2, 6)
    ]
    # In a step of partial rollouts no group may be complete.
    guard.check(13, {"groups/unfinished": 4.0, "optim/grad_norm": 0.0})
    guard.check(13, {"groups/unfinished": 4.0})
    resumed = guard_of(tmp_path, max_idle=10)
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(
        RuntimeError, match="step 14: in 10 steps in a row no group had a signal, .* is ruined"
    ):
        resumed.check(14, IDLE[0])
    lowered = guard_of(tmp_path, max_idle=5)
    lowered.load_state_dict(guard.state_dict())
    with pytest.raises(RuntimeError, match="in 10 steps in a row"):
        lowered.check(14, IDLE[0])
    never = guard_of(tmp_path, max_idle=0)
    for step in range(1, 100):
        never.check(step, IDLE[0])


@pytest.mark.slow
def test_a_ruined_run_stops_and_keeps_its_best_checkpoint(clips: Path, tmp_path: Path) -> None:
    ruin = ["optim.lr=1e6", "optim.warmup_steps=0", "optim.schedule=constant", "rollout.max_gap=0"]
    often = ["eval.every_steps=1", "checkpoint.every_steps=1", "optim.max_idle_steps=4", "num_steps=20"]
    with pytest.raises(SystemExit, match="in 4 steps in a row .* best held-out score of step 1;"):
        run(tmp_path / "run", clips, *ruin, *often)
    reset_process_state()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) < 12 and rows[-1]["groups/no_signal"] == 1
