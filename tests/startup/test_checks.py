"""What a start says of the data before the first step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, load_codec, save_codec
from grpo.codec.streams import Stream
from grpo.codec.vocabulary import assign
from grpo.config.load import load_config
from grpo.data.summary import describe
from grpo.media.clip import ClipSource
from grpo.startup.checks import CHECKS, check_shared_rows
from grpo.startup.engine_checks import check_length
from grpo.startup.reward_codecs import check_codecs
from rewards.scoring.specs import RewardSpec
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


def test_a_rewards_codec_is_the_one_that_the_model_was_grown_with(tmp_path: Path) -> None:
    stream = Stream(
        values_TC=np.eye(2, dtype=np.float32), rate_hz=2.0, start_s=0.0, channels=("x", "y"), units=("m", "m")
    )
    for folder, size in {"own": 4, "other": 5}.items():
        spec, bins = fit_bins("motion", [stream], codebook_size=size, coverage=1.0)
        save_codec(Codec(spec, bins), tmp_path / folder)

    def check(folder: str, name: str = "motion") -> None:
        grown_with = replace(load_codec(tmp_path / "own").spec, name=name)
        family: Any = SimpleNamespace(vocabulary=assign([grown_with], 100), path="grown")
        check_codecs({"mpjpe": RewardSpec(args={"codec": str(tmp_path / folder)})}, family)

    check("own")
    check("other", name="sensor")
    with pytest.raises(ValueError, match=r"rewards.mpjpe.args.codec=.*/other .* than grown/codecs/motion"):
        check("other")


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


def test_more_tokens_than_the_models_own_length_are_refused_unless_vllm_is_told_to_take_them() -> None:
    family = tiny.family()
    check_length(family, 8192, {})
    check_length(family, 262_144, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    for environment in ({}, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}):
        with pytest.raises(
            ValueError, match="max_model_tokens=8193 .* own length of 8192.*ALLOW_LONG_MAX_MODEL_LEN=1"
        ):
            check_length(family, 8193, environment)
