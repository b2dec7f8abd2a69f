"""Work is spread over processes: no process has much more than another, and nothing is lost or done twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.learner import balance
from grpo.learner.balance import MIN_GAIN_FRAC, plan_moves
from grpo.learner.launching import stay_on_this_machine
from grpo.packing import segments_of
from tests.support.balance_worker import unequal_groups
from tests.support.launched import run_two
from tests.support.learners import packed

Sizes = list[list[int]]


def after(tokens: Sizes) -> tuple[Sizes, Sizes]:
    """What each process still has of its own, and what came to it."""
    own = [dict(enumerate(each)) for each in tokens]
    arrived: Sizes = [[] for _ in tokens]
    for source, index, target in plan_moves(tokens):
        arrived[target].append(own[source].pop(index))  # a KeyError if one moves twice
    return [[*each.values()] for each in own], arrived


def sums(tokens: Sizes) -> list[int]:
    return [sum(own) + sum(arrived) for own, arrived in zip(*after(tokens), strict=True)]


def test_equal_work_stays_where_it_is() -> None:
    assert plan_moves([[5, 5], [10], [3, 3, 4]]) == []
    assert plan_moves([[100, 100], [199]]) == []  # not worth the way
    assert plan_moves([[], []]) == []


def test_one_process_with_everything_gives_of_it() -> None:
    assert sorted(sums([[10] * 8, []])) == [40, 40]
    assert max(sums([[7, 1, 1, 1, 1, 1], [], []])) == 7


@given(st.lists(st.lists(st.integers(1, 5000), max_size=12), min_size=2, max_size=8))
def test_nothing_is_lost_and_no_further_move_would_be_worth_it(tokens: Sizes) -> None:
    own, arrived = after(tokens)
    assert Counter(sum(own + arrived, [])) == Counter(sum(tokens, []))
    now = sums(tokens)
    assert max(now) <= max(map(sum, tokens))
    gap = max(now) - min(now)
    savings = [min(size, gap - size) for size in own[now.index(max(now))]]
    assert max(savings, default=0) < max(MIN_GAIN_FRAC * max(now), 1)


def test_segments_are_without_counterfactuals_whose_clips_nothing_trains_on() -> None:
    segments = segments_of(unequal_groups(), tokens_per_row=1000, drop_flat=False, trained=True)
    assert all(rollout.counterfactuals for scored in unequal_groups() for rollout in scored.group.rollouts)
    assert not any(rollout.counterfactuals for segment in segments for rollout in segment.rollouts)


@pytest.mark.slow
def test_segments_travel_whole_between_processes_over_the_loopback(tmp_path: Path) -> None:
    run_two("multi_gpu", ["-m", "tests.support.balance_worker", str(tmp_path / "out.json")], tmp_path)
    processes = json.loads((tmp_path / "out.json").read_text())
    # 127.0.0.1, as Linux writes it on a little-endian processor.
    assert {address for each in processes for address in each["listens"]} == {"0100007F"}
    rows = packed(unequal_groups(), tokens_per_row=1000)
    assert sorted(name for each in processes for name in each["ids"]) == [f"s{index}" for index in range(6)]
    tokens = [each["tokens"] for each in processes]
    assert sum(tokens) == sum(len(row.input_ids_N) for row in rows)
    assert max(tokens) < 0.6 * sum(tokens)  # five groups of six were on one of the two
    assert sorted(token for each in processes for row in each["targets"] for token in row) == sorted(
        token for row in rows for token in row.target_T.tolist()
    )
    assert sorted(pixels for each in processes for pixels in each["pixels"]) == sorted(
        int(scored.group.prompt.clip.frames_FHWC.sum())
        for scored in unequal_groups()
        if scored.group.prompt.clip
    )


def test_a_segment_travels_in_a_batch_which_needs_no_communicator_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under NCCL a plain call makes one for each pair of processes; torch's docstring of `send_object_list`."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(balance.dist, "send_object_list", lambda *_, **options: given.append(options))
    segments = segments_of(unequal_groups(), tokens_per_row=1000, drop_flat=True, trained=True)
    monkeypatch.setattr(balance, "gather_object", lambda own: [own[0], []])
    balance.balanced(segments, SimpleNamespace(num_processes=2, process_index=0, device="cpu"))  # pyright: ignore
    assert given and all(each["use_batch"] for each in given)


@pytest.mark.parametrize(
    "given, interface",
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "lo"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "NCCL_SOCKET_IFNAME": "eth1"}, "eth1"),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, None),
        ({}, None),
    ],
)
def test_processes_of_one_machine_listen_on_its_loopback_unless_told_where(
    given: dict[str, str], interface: str | None
) -> None:
    stay_on_this_machine(given)
    assert given.get("NCCL_SOCKET_IFNAME") == interface


def test_segments_move_between_teams_to_whoever_has_the_senders_place_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes 0 and 1 share rows, and 2 and 3: the first two have three segments of 100 tokens, the others none."""
    targets: list[tuple[int, int]] = []
    for rank in (0, 1):
        monkeypatch.setattr(
            balance.dist, "send_object_list", lambda _, dst, rank=rank, **__: targets.append((rank, dst))
        )
        monkeypatch.setattr(balance, "gather_object", lambda own: [[100, 100], [100], [], []])
        segments = segments_of(
            unequal_groups()[: 2 - rank], tokens_per_row=1000, drop_flat=True, trained=True
        )
        accelerator: Any = SimpleNamespace(num_processes=4, process_index=rank, device="cpu")
        split: Any = SimpleNamespace(size=2, shared=lambda items, device: ["other", *items])
        kept = balance.balanced(segments, accelerator, split)
        assert kept[0] == "other" and len(kept) == 1 + len(segments) - sum(
            sender == rank for sender, _ in targets
        )
    assert targets == [(0, 2)]
