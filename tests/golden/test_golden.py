"""What the product computed when the golden trace was written, it computes today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden import cases, files, product
from tests.golden import compare_sampled as sampled
from tests.golden.compare import differences


def assert_as_stored(stored: Any, found: Any) -> None:
    lines = list(differences(stored, files.rounded(found)))
    assert not lines, f"{len(lines)} differences, the first:\n" + "\n".join(lines[:20])


@pytest.mark.parametrize("kind", [*cases.LOSSES, "options"])
def test_three_updates_with_each_loss_are_as_stored(kind: str) -> None:
    stored = files.read_updates()
    assert stored.keys() == cases.UPDATES.keys()
    names = [*cases.OPTIONS] if kind == "options" else [f"{kind}, {name}" for name in cases.WITH]
    assert_as_stored({name: stored[name] for name in names}, product.updates(files.read("batch"), names))


def test_packed_rows_and_their_log_probs_are_as_stored() -> None:
    assert_as_stored(files.read("rows"), product.rows(files.read("batch")))


def test_rewards_totals_and_advantages_are_as_stored() -> None:
    assert_as_stored(files.read("rewards"), product.reward_table())


def test_a_demo_with_stored_rollouts_makes_the_stored_run(tmp_path: Path) -> None:
    found, _ = product.demo(tmp_path, files.read("demo_rollouts"))
    assert_as_stored(files.read("demo"), found)


@pytest.mark.parametrize(
    ("stored", "found", "num_lines"),
    [
        ({"a": 1.0}, {"a": 1.00005}, 0),
        ({"a": 1.0}, {"a": 1.0002}, 1),
        ({"a": 0.0}, {"a": 1e-7}, 0),
        ({"a": 0.0}, {"a": 1e-4}, 1),
        ({"sampler/gap_mean": 1e-7}, {"sampler/gap_mean": 1e-4}, 0),
        ({"a": 10_000}, {"a": 10_001}, 1),
        ({"a": "x"}, {"a": "y"}, 1),
        ({"a": None}, {"a": 0.0}, 1),
        ({"a": float("nan")}, {"a": 1.0}, 1),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, 1),
        ({"a": [1.0, 2.0, 3.0]}, {"a": [1.5, 2.0, 3.5]}, 2),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, 2),
    ],
)
def test_floats_are_compared_within_tolerances_and_all_else_exactly(
    stored: Any, found: Any, num_lines: int
) -> None:
    assert len([*differences(stored, found)]) == num_lines


def test_sampled_runs_are_compared_to_the_last_digit() -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": 0.5}, {"step": 1, "loss": 0.1}]
    assert sampled.changes(rows, rows) == []
    assert sampled.changes(rows, [rows[0], {"step": 1, "loss": 0.10000000000000002}]) == [
        "step 1, loss: 0.10000000000000002, before 0.1"
    ]
    assert len(sampled.changes(rows, [rows[0], {"step": 1, "lost": 0.1}])) == 2
    assert sampled.changes(rows, rows[:1]) == ["steps [0], before [0, 1]"]


def test_a_worktree_holds_a_revision_and_is_removed_again(tmp_path: Path) -> None:
    with sampled.worktree("HEAD", tmp_path / "tree") as tree:
        assert (tree / "configs" / "demo.yaml").is_file()
    assert not tree.exists()
