"""Rewards inside training runs: every kind of plugin, counterfactuals, hangs, and where the total comes from."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grpo.run.folder import read_rows
from tests.support import runs, tiny

KINDS = tiny.ROOT / "configs" / "plugins" / "kinds.py"
ROUGH = tiny.ROOT / "tests" / "support" / "plugins" / "rough.py"
EVERY_KIND = [
    f"rewards.{name}={{fn: {KINDS}:{name}, weight: 0.1}}"
    for name in ("sees_motion", "rarity", "Novelty", "remote", "needs_eyes", "trl_style")
]
NO_EVAL = ["eval.every_steps=0", "checkpoint.every_steps=0", "num_steps=2"]


@pytest.fixture(scope="module")
def every_kind(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "kinds"
    twice = [
        f"rewards.again_{seconds}={{fn: '{KINDS}:remote', weight: 0.1, args: {{seconds: 0.0{seconds}}}}}"
        for seconds in (1, 2)
    ]
    scheduled = ["rewards.format.schedule=[[1, 0], [2, 1]]"]
    runs.run(run_dir, clips, *NO_EVAL, *EVERY_KIND, *twice, *scheduled)
    return run_dir


@pytest.mark.slow
def test_every_kind_of_reward_trains(every_kind: Path) -> None:
    rows = read_rows(every_kind / "metrics.jsonl")
    names = {"sees_motion", "rarity", "Novelty", "remote", "needs_eyes", "trl_style", "again_1", "again_2"}
    for row in rows[-2:]:
        assert all(f"rewards/{name}/mean" in row for name in names)
        assert row["rewards/error_frac"] == 0.0
        assert row["tokens/counterfactual"] > 0
    assert not (every_kind / "failures.jsonl").exists()


@pytest.mark.slow
def test_the_rollouts_file_explains_the_total_column_by_column(every_kind: Path) -> None:
    for step, factor in ((1, 0.0), (2, 1.0)):
        rows = pq.read_table(every_kind / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
        assert rows
        for row in rows:
            parts = [value for key, value in row.items() if key.startswith("parts/")]
            assert len(parts) == 11 and sum(parts) == pytest.approx(row["total"])
            assert row["parts/format"] == pytest.approx(0.5 * factor * row["rewards/format"])
            assert row["parts/rarity"] == pytest.approx(0.1 * row["rewards/rarity"])


@pytest.mark.slow
def test_where_rewards_run_changes_nothing(clips: Path, tmp_path: Path) -> None:
    overrides = [*NO_EVAL, EVERY_KIND[1], EVERY_KIND[4]]
    apart = runs.run(tmp_path / "apart", clips, *overrides)
    here = runs.run(tmp_path / "here", clips, *overrides, "rewards_workers.max_workers=0")
    assert runs.repeatable(apart) == runs.repeatable(here)


@pytest.mark.slow
def test_a_reward_that_hangs_costs_its_own_completions(clips: Path, tmp_path: Path) -> None:
    hangs = f"rewards.hangs={{fn: '{ROUGH}:hangs_on', weight: 0.1, timeout_s: 1.0, args: {{word: not sure}}}}"
    rows = runs.run(tmp_path / "run", clips, *NO_EVAL, hangs, "rewards_max_error_frac=1.0")
    failures = read_rows(tmp_path / "run" / "failures.jsonl")
    assert {(each["kind"], each["reward"]) for each in failures} == {("reward", "hangs")}
    assert all("no value 1 s after" in each["reason"] for each in failures)
    stored = [
        row
        for step in (1, 2)
        for row in pq.read_table(tmp_path / "run" / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
    ]
    assert [row["total"] is None for row in stored] == ["not sure" in row["completion"] for row in stored]
    assert 0 < sum("not sure" in row["completion"] for row in stored) < len(stored)
    assert rows[-1]["step"] == 2


@pytest.mark.slow
def test_a_reward_that_fails_too_often_stops_the_run_by_name(clips: Path, tmp_path: Path) -> None:
    exits = f"rewards.exits={{fn: '{ROUGH}:exits_on', weight: 0.1, args: {{word: not sure}}}}"
    reason = (
        r"step 1: rewards.exits failed on .* exited with status .* have no total, .*; see .*failures\.jsonl"
    )
    with pytest.raises(SystemExit, match=reason):
        runs.run(tmp_path / "run", clips, *NO_EVAL, exits)
    runs.reset_process_state()


@pytest.mark.slow
def test_normalise_then_sum_trains(clips: Path, tmp_path: Path) -> None:
    rows = runs.run(
        tmp_path / "run", clips, *NO_EVAL, "advantages.multi_objective_aggregation=normalize_then_sum"
    )
    assert abs(rows[-1]["reward/mean"]) < 1e-6  # every reward's mean in its group is 0
    assert rows[-1]["reward/std"] > 0


@pytest.mark.slow
def test_a_finished_run_without_checkpoints_is_not_lost_to_a_longer_one(clips: Path, tmp_path: Path) -> None:
    half = [*NO_EVAL, "rewards.half={fn: configs/plugins/kinds.py:sees_motion, weight: 0, tasks: [number]}"]
    rows = runs.run(tmp_path / "run", clips, *half)
    assert rows[-1]["rewards/half/abstained"] == 1.0 and rows[-1]["rewards/half/failed"] == 0.0
    with pytest.raises(
        SystemExit, match="holds a finished run of 2 steps without a checkpoint to go on from"
    ):
        runs.run(tmp_path / "run", clips, *half, "num_steps=3")
    assert read_rows(tmp_path / "run" / "metrics.jsonl") == rows


@pytest.mark.slow
def test_the_readmes_reward_trains_as_printed_from_another_folder(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, opening in (
        ("my_rewards.py", "```python\n# my_rewards.py"),
        ("my_rewards.yaml", "```yaml\n# my_rewards.yaml"),
    ):
        block = (tiny.ROOT / "README.md").read_text().split(opening)[1].split("```")[0]
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    held_out = f"data.eval=[{{path: {clips}/heldout.jsonl, name: own}}]"
    limits = ["rewards_workers.memory_gib=1", "checkpoint.every_steps=0", "num_steps=1"]
    rows = runs.run(tmp_path / "run", clips, "my_rewards.yaml", held_out, *limits)
    assert "eval/own/early" in rows[0] and rows[-1]["rewards/error_frac"] == 0.0
    stored = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    assert {row["rewards/early"] for row in stored} == {0.0, 1.0}
    for row in stored:
        assert row["parts/early"] == pytest.approx(0.2 * row["rewards/early"])
        assert row["parts/keyframe"] == 0.5 * row["rewards/keyframe"] * (row["rewards/accuracy"] >= 0.5)
