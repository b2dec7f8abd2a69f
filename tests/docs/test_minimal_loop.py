"""The documentation's loop in one file learns the demo."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from grpo.data.readers.jsonl import read_jsonl
from tests.support import tiny

LOOP = tiny.ROOT / "docs" / "minimal_loop.py"
MAX_LINES = 130


def test_the_minimal_loop_learns(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_from_file_location("minimal_loop", LOOP)
    assert spec is not None and spec.loader is not None
    loop = module_from_spec(spec)
    spec.loader.exec_module(loop)
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.setattr(loop, "read_synthetic", lambda path, media_root: read_jsonl(clips / "train.jsonl"))
    monkeypatch.setattr(loop, "PROMPTS_PER_STEP", 8)
    torch.manual_seed(0)
    means = loop.main(num_steps=8)
    assert means[0] < 0.9 and means[-1] > 1.2


def test_the_minimal_loop_is_minimal() -> None:
    assert len(LOOP.read_text().splitlines()) <= MAX_LINES
