"""What a start says of the data before the first step."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.config.load import load_config
from grpo.data.summary import describe
from grpo.media.clip import ClipSource
from grpo.startup.checks import CHECKS, check_shared_rows
from tests.support import grown, tiny

CLIP = ClipSource(video="a.mp4", end_s=3.0)


@pytest.mark.parametrize(
    ("columns", "clip_source", "other"),
    [
        ({"keyframe_s": [1], "level": 3}, CLIP, "keyframe_s (did you mean 'keyframes_s'?), level"),
        # With a video, an id of it is none that was misspelt.
        ({"video_id": "x"}, CLIP, "video_id"),
        ({"vidoe": "x"}, None, "vidoe (did you mean 'video'?)"),
        # What the sample has is no other column, although it is kept for rewards.
        ({"answer": "B", "options": ["A. x"], "data_type": "video"}, CLIP, "data_type"),
        ({"end": 3, "system": "no prompt"}, CLIP, "end, system"),
    ],
)
def test_columns_are_listed_with_the_field_that_may_be_meant(
    columns: dict[str, object], clip_source: ClipSource | None, other: str
) -> None:
    samples = [tiny.sample(columns=columns, clip_source=clip_source), tiny.sample("plain")]
    assert describe(samples).endswith(f"; other columns: {other}")


def test_samples_without_other_columns_are_counted_alone() -> None:
    assert describe([tiny.sample(columns={"answer": "B"}, clip_source=CLIP)]).endswith("0 with key moments")


@pytest.mark.parametrize(("size", "fits"), [(1, True), (2, True), (4, True), (3, False), (8, False)])
def test_processes_that_share_rows_have_equally_many_of_the_models_four_heads(size: int, fits: bool) -> None:
    """The processes are 24."""
    config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), f"optim.sequence_parallel_size={size}"])
    start: Any = SimpleNamespace(config=config, family=tiny.family(), num_processes=24)
    refusal = f"optim.sequence_parallel_size={size} does not divide the 4 attention heads of the model"
    with nullcontext() if fits else pytest.raises(ValueError, match=refusal):
        check_shared_rows(start)


@pytest.mark.parametrize(
    ("settings", "is_grown", "why"),
    [
        (["model.lora.r=4"], True, "model.lora"),
        (["model.freeze=[language]"], True, "model.freeze"),
        (["model.lora.r=4"], False, None),
        (["model.new_rows_only=true"], True, None),
        ([], True, None),
    ],
)
def test_rows_of_code_tokens_that_do_not_train_are_told_with_the_phase_that_trains_them(
    settings: list[str], is_grown: bool, why: str | None
) -> None:
    said: list[str] = []
    config = load_config([str(tiny.ROOT / "configs" / "demo.yaml"), *settings])
    family = grown.family() if is_grown else tiny.family()
    start: Any = SimpleNamespace(config=config, family=family, say=said.append)
    for check in CHECKS:
        if check.key == "model":
            check.run(start)
    assert [line.partition(" keeps the rows of code tokens")[0] for line in said] == (
        [f"note: {why}"] if why else []
    )
    assert all("model.new_rows_only=true first" in line for line in said)
