"""Figures of rows, groups and processes become those of a step."""

from __future__ import annotations

from grpo.run.metrics import Mean, Metrics


def test_a_mean_is_weighted_by_its_counts_and_left_out_over_nothing() -> None:
    parts = [
        Metrics(means={"length": Mean.of([1.0, None, 2.0]), "empty": Mean.of([None])}),
        Metrics(means={"length": Mean.of([6.0])}),
    ]
    assert sum(parts, Metrics()).reduced() == {"length": 3.0}


def test_counts_add_up_and_of_maxima_the_largest_stays() -> None:
    parts = [
        Metrics(sums={"tokens": 3}, maxima={"gap": 0.5}),
        Metrics(sums={"tokens": 4}, maxima={"gap": -1.0}),
    ]
    assert sum(parts, Metrics()).reduced() == {"gap": 0.5, "tokens": 7}


def test_seconds_add_up_within_a_process_and_the_slowest_process_counts() -> None:
    own = Metrics(seconds={"time/data": 1.0}) + Metrics(seconds={"time/data": 2.0})
    others = [Metrics(maxima={"time/data": 1.5, "time/eval": 0.5})]
    assert own.reduced(lambda mine: mine + others) == {"time/data": 3.0, "time/eval": 0.5}
