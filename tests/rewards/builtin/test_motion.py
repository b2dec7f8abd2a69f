"""Rewards of body motion, by hand, through a codec that loses nothing that counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.streams import Stream, write_stream
from grpo.codec.texts import code_text
from grpo.groups import Rollout
from grpo.motion.features import MOTION, motion_features
from grpo.motion.skeleton import INDEX, LOWER, OFFSETS_J3, SEGMENTS, UPPER, forward_kinematics
from rewards.builtin.motion import foot_skate, joint_velocity, mpjpe, token_validity
from rewards.hostile import COMPLETIONS, make_group
from rewards.scoring.motion import mpjpe_mm, mpjve_mm_s, skate_frac
from tests.support import tiny

RATE_HZ = 10.0


def standing(num_frames: int) -> np.ndarray:
    root_T3 = np.tile([0.0, 0.0, 0.93], (num_frames, 1))
    rotations = np.broadcast_to(np.eye(3), (num_frames, len(SEGMENTS), 3, 3))
    return forward_kinematics(root_T3, rotations, OFFSETS_J3)


def stream_of(positions_TJ3: np.ndarray) -> Stream:
    return Stream(
        values_TC=motion_features(positions_TJ3, RATE_HZ),
        rate_hz=RATE_HZ,
        start_s=0.0,
        channels=tuple(MOTION),
        units=tuple(MOTION.values()),
    )


TRUTH_TJ3 = standing(4)
RAISED_TJ3 = TRUTH_TJ3 + (0.0, 0.0, 0.1)
SLIDING_TJ3 = TRUTH_TJ3 + np.arange(4)[:, None, None] * np.array([0.1, 0.0, 0.0])
LIFTED_TJ3 = TRUTH_TJ3.copy()
LIFTED_TJ3[2:, INDEX["R_Toe"], 2] += 0.23
"""The right toe 0.23 m higher in the last two of four frames."""


class Scene:
    """A recording of somebody who stands, with a codec of bins of 0.01 m, or m/s."""

    def __init__(self, folder: Path) -> None:
        extremes = np.stack([np.full(70, -2.555), np.full(70, 2.565)]).astype(np.float32)
        spread = replace(stream_of(TRUTH_TJ3), values_TC=extremes)
        spec, bins = fit_bins("motion", [spread], codebook_size=512, coverage=1.0)
        self.codec = save_codec(Codec(spec, bins), folder / "codec")
        self.folder = str(folder / "codec")
        write_stream(folder / "truth.npz", stream_of(TRUTH_TJ3))
        self.sample = tiny.sample(
            "a", task="open", options=(), answer="x", streams={"motion": str(folder / "truth.npz")}
        )

    def rollout(self, text: str, *, has_stream: bool = True) -> Rollout:
        sample = self.sample if has_stream else replace(self.sample, streams={})
        return make_group([text], sample).rollouts[0]

    def text(self, positions_TJ3: np.ndarray) -> str:
        return code_text(self.codec.spec, self.codec.encode(stream_of(positions_TJ3)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("motion"))


def test_formulas_by_hand():
    everything = tuple(range(23))
    assert mpjpe_mm(RAISED_TJ3, TRUTH_TJ3, everything) == pytest.approx(100)
    # One of 23 segments, 230 mm off in two of four frames: 230 / 23 / 2; one of the 8 of the legs: 230 / 8 / 2.
    assert mpjpe_mm(LIFTED_TJ3, TRUTH_TJ3, everything) == pytest.approx(5.0)
    assert mpjpe_mm(LIFTED_TJ3, TRUTH_TJ3, LOWER) == pytest.approx(14.375)
    assert mpjpe_mm(LIFTED_TJ3, TRUTH_TJ3, UPPER) == 0
    # It jumps once in three steps: 230 mm * 10 Hz / 23 / 3.
    assert mpjve_mm_s(LIFTED_TJ3, TRUTH_TJ3, everything, rate_hz=10) == pytest.approx(100 / 3)
    assert mpjve_mm_s(RAISED_TJ3, TRUTH_TJ3, everything, rate_hz=10) == pytest.approx(0)
    feet = (INDEX["R_Toe"], INDEX["L_Toe"])
    # 0.1 m with each frame is 1 m/s; at 4 Hz it would be 0.4.
    assert skate_frac(SLIDING_TJ3, feet, rate_hz=10) == 1
    assert (
        skate_frac(SLIDING_TJ3, feet, rate_hz=4)
        == skate_frac(SLIDING_TJ3 + (0, 0, 0.1), feet, rate_hz=10)
        == 0
    )
    half = SLIDING_TJ3.copy()
    half[2:] = half[1]
    # It moves in the first of three steps.
    assert skate_frac(half, feet, rate_hz=10) == pytest.approx(1 / 3)


TABLE = {
    # completion: mpjpe full, lower (500 mm), joint_velocity (1000 mm/s), foot_skate, token_validity
    "as recorded": (TRUTH_TJ3, 1.0, 1.0, 1.0, 1.0),
    # All 100 mm too high: 1 - 100 / 500; nothing touches the floor.
    "raised": (RAISED_TJ3, 0.8, 0.8, 1.0, 1.0),
    # 1 - 5 / 500; 1 - 14.375 / 500; 1 - 33.3 / 1000.
    "a toe lifted": (LIFTED_TJ3, 0.99, 0.97125, 0.96667, 1.0),
    # The pose is right in its own heading, and the feet slide.
    "sliding": (SLIDING_TJ3, 1.0, 1.0, 1.0, 0.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_by_hand(scene: Scene, name: str):
    positions_TJ3, full, lower, velocity, no_skate = TABLE[name]
    rollout = scene.rollout(scene.text(positions_TJ3))
    # The middle of a bin is at most 5 mm off along each axis: 0.02 of 500 mm.
    assert mpjpe(rollout, codec=scene.folder) == pytest.approx(full, abs=0.02)
    assert mpjpe(rollout, codec=scene.folder, joints="lower") == pytest.approx(lower, abs=0.02)
    assert joint_velocity(rollout, codec=scene.folder) == pytest.approx(velocity, abs=0.02)
    assert foot_skate(rollout, codec=scene.folder) == no_skate
    assert token_validity(rollout, codec=scene.folder) == 1


def test_the_way_walked_counts_from_the_start(scene: Scene):
    rollout = scene.rollout(scene.text(SLIDING_TJ3))
    # 0, 100, 200 and 300 mm off: 150 mm in the mean.
    assert mpjpe(rollout, codec=scene.folder, space="start") == pytest.approx(0.7, abs=0.02)
    assert mpjpe(rollout, codec=scene.folder, space="start", zero_at_mm=100.0) == 0


def test_codes_that_do_not_parse_or_are_too_few_earn_nothing(scene: Scene):
    right = scene.text(TRUTH_TJ3)
    shorter = code_text(scene.codec.spec, scene.codec.encode(stream_of(TRUTH_TJ3))[:3])
    wrong_level = right.replace("<motion_0_", "<motion_1_", 1)
    for text in (
        "",
        "I stand.",
        right[:-9],
        right * 2,
        shorter,
        wrong_level,
        right.replace("</motion>", "x</motion>"),
    ):
        rollout = scene.rollout(text)
        assert [
            fn(rollout, codec=scene.folder) for fn in (mpjpe, joint_velocity, foot_skate, token_validity)
        ] == [0] * 4


def test_text_beside_the_span_is_no_valid_answer_though_it_is_read(scene: Scene):
    rollout = scene.rollout(f"So: {scene.text(TRUTH_TJ3)}")
    assert token_validity(rollout, codec=scene.folder) == 0
    assert mpjpe(rollout, codec=scene.folder) == pytest.approx(1.0, abs=0.02)


def test_questions_without_motion_are_not_scored(scene: Scene):
    rollout = scene.rollout(scene.text(TRUTH_TJ3), has_stream=False)
    assert {
        fn(rollout, codec=scene.folder) for fn in (mpjpe, joint_velocity, foot_skate, token_validity)
    } == {None}


def test_a_codec_of_other_streams_is_an_error_and_no_reward(scene: Scene, tmp_path: Path):
    truth = stream_of(TRUTH_TJ3)
    renamed = replace(truth, channels=(*truth.channels[:-1], "Tail.z"))
    for name, stream in {"rate": replace(truth, rate_hz=20.0), "channels": renamed}.items():
        spec, bins = fit_bins("motion", [stream], codebook_size=8, coverage=1.0)
        save_codec(Codec(spec, bins), tmp_path / name)
    rollout = scene.rollout(scene.text(TRUTH_TJ3))
    with pytest.raises(
        ValueError, match=r"truth.npz: the stream has 10 Hz, the codec motion 20 Hz \(.*rate\)"
    ):
        mpjpe(rollout, codec=str(tmp_path / "rate"))
    with pytest.raises(ValueError, match=r"channels: the codec motion is not one of body motion"):
        token_validity(rollout, codec=str(tmp_path / "channels"))


def test_hostile_completions_earn_nothing(scene: Scene):
    tags = {
        "tags": "<motion></motion>" * 2_000,
        "open": "<motion>" * 4_000,
        "digits": f"<motion><motion_0_{'9' * 10_000}>",
    }
    for text in (*COMPLETIONS.values(), *tags.values()):
        assert mpjpe(scene.rollout(text), codec=scene.folder) == 0
