"""Differences over seeds are taken within each seed."""

from __future__ import annotations

from tests.motion.seeds import BEST, BLIND, CLIP, GREEDY, MEAN, Means, table


def run(at_mm: float, won_mm: float) -> Means:
    """A seed in which all policies are as far off, but GRPO's, by less."""
    ways = [(CLIP, arm, answer) for arm in ("supervised", "more", "grpo") for answer in (GREEDY, MEAN, BEST)]
    errors = {key: (at_mm, at_mm + 10) for key in [*ways, (BLIND, "supervised", GREEDY)]}
    return errors | {(CLIP, "grpo", GREEDY): (at_mm - won_mm, at_mm + 10 - 2 * won_mm)}


def test_what_is_won_in_each_seed_has_an_interval_of_its_own():
    lines = table([run(50, 4), run(60, 5), run(70, 6)]).splitlines()
    # Student's t of two degrees of freedom: 4.303 / sqrt(3) deviations.
    assert "| with video, more, greedy | 60.0 ± 24.8 | 70.0 ± 24.8 |" in lines
    assert "| GRPO - more supervised | -5.0 ± 2.5 | -10.0 ± 5.0 |" in lines
    assert "| video: supervised with - without | 0.0 ± 0.0 | 0.0 ± 0.0 |" in lines


def test_a_single_seed_has_no_interval():
    assert "| GRPO - supervised | -4.0 | -8.0 |" in table([run(50, 4)]).splitlines()
