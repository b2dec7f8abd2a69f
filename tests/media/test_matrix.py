"""Small videos of many codecs and containers: each is read as a full decoding reads it, or refused for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media.matrix import cases, check


@pytest.mark.parametrize("kind", dict.fromkeys(case.kind for case in cases()))
def test_every_frame_and_time_is_that_of_a_full_decoding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVT_LOG", "1")
    found = {case.name: check(case, tmp_path) for case in cases() if case.kind == kind}
    assert {name: reason for name, (outcome, reason) in found.items() if outcome == "differs"} == {}
    assert any(outcome == "agrees" for outcome, _ in found.values()) or kind in ("cut off", "bad reception")
