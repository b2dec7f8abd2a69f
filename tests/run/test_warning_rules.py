"""What is said of sampling that goes wrong."""

from __future__ import annotations

import re

import pytest

from grpo.run.warning_rules import RULES, SUCCESS, enough_completions, flat_share, warnings_of

FINE = {
    "completion/stopped": 0.9, "completion/length": 12.0, "completion/empty": 0.0, "groups/all_equal": 0.1,
    "groups/no_signal": 0.2, SUCCESS: 0.5,
}  # fmt: skip


def test_nothing_is_said_of_a_step_that_is_fine_or_of_one_without_figures() -> None:
    assert warnings_of(FINE, 8) == warnings_of({}, 8) == {}
    for key in FINE:
        assert warnings_of({name: value for name, value in FINE.items() if name != key}, 8) == {}


@pytest.mark.parametrize(
    ("name", "wrong", "group_size", "words"),
    [
        ("all cut", {"completion/stopped": 0.0, "completion/length": 24.0}, 8, "max_new_tokens, .* 24 tokens"),
        ("all empty", {"completion/empty": 1.0}, 8, "all completions are empty"),
        ("all equal", {"groups/all_equal": 1.0}, 4, "all 4 completions are the same: .* raise rollout.temperature"),
        ("rows too large", {"optim/split_rows": 3.0}, 8, "for 3 passes of rows, .*; lower optim.tokens_per_row"),
        # .9^4 + .1^4 = .6562; .9^7 + .1^7 = .478 is the first below a half.
        ("groups too small", {SUCCESS: 0.9, "groups/no_signal": 0.7}, 4, "70% .* 90% .* 66% .* of 4 .* of 7 most"),
    ],
)  # fmt: skip
def test_each_rule_says_what_is_wrong(
    name: str, wrong: dict[str, float], group_size: int, words: str
) -> None:
    found = warnings_of(FINE | wrong, group_size)
    assert found.keys() == {name}
    assert re.search(words, found[name])


def test_groups_that_are_flat_for_another_reason_are_not_called_too_small() -> None:
    # .5^8 + .5^8 = .0078
    assert warnings_of(FINE | {"groups/no_signal": 0.9}, 8) == {}
    assert warnings_of(FINE | {"groups/no_signal": 1.0, SUCCESS: 1.0}, 8) == {}


def test_the_share_of_flat_groups_is_that_of_all_right_and_of_all_wrong() -> None:
    assert flat_share(0.5, 3) == 0.25 and flat_share(1.0, 4) == 1.0
    assert [enough_completions(chance) for chance in (0.5, 0.1, 0.01)] == [3, 7, 69]  # .99^69 = .4998


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
