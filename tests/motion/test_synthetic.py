"""The synthetic walker: what its sensors tell and what they don't, and its data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grpo.codec.streams import read_stream
from grpo.data import READERS
from grpo.media.clip import ClipSource
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from grpo.motion.camera import SIZE_PX, film
from grpo.motion.features import sensor_features
from grpo.motion.records import TASKS
from grpo.motion.skeleton import INDEX, LOWER, OFFSETS_J3, PARENTS
from grpo.motion.synthetic import motion_at, write_dataset
from grpo.motion.walker import (
    ACTIVITIES,
    FASTEST_HZ,
    Motion,
    Plan,
    describe,
    draw_plan,
    slowest_hz,
    walk,
)

PLANS = {
    activity: next(
        plan
        for seed in range(100)
        if (plan := draw_plan(np.random.default_rng(seed), 6.0)).activity == activity
    )
    for activity in ACTIVITIES
}


def walked(plan: Plan, seed: int = 0) -> Motion:
    return walk(plan, np.random.default_rng(seed), num_frames=60, rate_hz=10.0)


def other_legs(plan: Plan) -> Plan:
    """The same plan with legs that step elsewhere, higher and faster, or stand with the other foot in front."""
    legs = plan.legs
    is_stepping = legs.cadence_hz > 0
    others = replace(
        legs,
        phase=legs.phase + 0.5,
        lead_m=-legs.lead_m,
        width_m=0.55 - legs.width_m,
        lift_m=0.34 - legs.lift_m if is_stepping else 0.0,
        cadence_hz=slowest_hz(plan.speed_m_s) + FASTEST_HZ - legs.cadence_hz if is_stepping else 0.0,
    )
    return replace(plan, legs=others)


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_bones_keep_their_length_and_no_foot_goes_through_the_floor(activity):
    motion = walked(PLANS[activity])
    bones_TJ3 = motion.positions_TJ3[:, 1:] - motion.positions_TJ3[:, PARENTS[1:]]
    lengths_J = np.linalg.norm(OFFSETS_J3[1:], axis=-1) * motion.plan.stature
    assert np.linalg.norm(bones_TJ3, axis=-1) == pytest.approx(np.tile(lengths_J, (60, 1)), abs=1e-9)
    assert motion.positions_TJ3[..., 2].min() > 0.0


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_legs_that_no_sensor_tells_apart_look_different(activity):
    one, other = walked(PLANS[activity]), walked(other_legs(PLANS[activity]))
    upper = [number for number in range(23) if number not in LOWER]
    assert other.positions_TJ3[:, upper] == pytest.approx(one.positions_TJ3[:, upper])
    sensors = [sensor_features(each.positions_TJ3, each.rotations_TJ33, 10.0) for each in (one, other)]
    assert sensors[0] == pytest.approx(sensors[1])
    legs_apart_m = np.linalg.norm(one.positions_TJ3 - other.positions_TJ3, axis=-1)[:, LOWER].mean()
    assert legs_apart_m > 0.05
    frames = [film(each, np.random.default_rng(0), every=2).astype(int) for each in (one, other)]
    changed = np.abs(frames[0] - frames[1]).max(-1) > 40
    assert changed.mean() > 0.01


def test_the_heads_speed_tells_no_more_of_the_rhythm_than_its_slowest():
    plans = [draw_plan(np.random.default_rng(seed), 6.0) for seed in range(300)]
    walks = [plan for plan in plans if plan.legs.cadence_hz]
    above = [
        (plan.legs.cadence_hz - slowest_hz(plan.speed_m_s)) / (FASTEST_HZ - slowest_hz(plan.speed_m_s))
        for plan in walks
    ]
    assert min(above) >= 0 and max(above) <= 1
    assert abs(np.corrcoef(above, [plan.speed_m_s for plan in walks])[0, 1]) < 0.2


def test_a_standing_foot_stays_where_it_is():
    motion = walked(PLANS["walk"])
    toe_T3 = motion.positions_TJ3[:, INDEX["L_Toe"]]
    moved_m = np.linalg.norm(np.diff(toe_T3[:, :2], axis=0), axis=-1)
    low = (toe_T3[:-1, 2] < 0.012) & (toe_T3[1:, 2] < 0.012)
    assert low.sum() > 10
    assert np.median(moved_m[low]) < 0.01 < moved_m[~low].max()


def test_activities_are_what_their_names_say():
    seated, bent, reached = (walked(PLANS[name]).positions_TJ3 for name in ("sit", "bend", "reach"))
    assert seated[-1, 0, 2] < 0.6 < 0.8 < seated[0, 0, 2]
    assert bent[-1, INDEX["Head"], 2] < bent[0, INDEX["Head"], 2] - 0.1
    hand = INDEX[f"{PLANS['reach'].hand}_Hand"]
    assert reached[-1, hand, 2] > reached[0, hand, 2] + 0.2
    assert np.linalg.norm(np.ptp(walked(PLANS["walk"]).positions_TJ3[:, 0, :2], axis=0)) > 1.0
    assert len({describe(plan) for plan in PLANS.values()}) == len(ACTIVITIES)


def test_a_clip_is_the_same_whatever_else_is_made():
    (one, frames), (again, same), (held_out, _) = (
        motion_at(split, 3, seed=1) for split in ("train", "train", "heldout")
    )
    assert np.array_equal(one.positions_TJ3, again.positions_TJ3) and np.array_equal(frames, same)
    assert one.plan != held_out.plan


def test_a_data_set_has_clips_and_streams_of_one_clock_in_splits_that_share_nothing(tmp_path: Path):
    folder = write_dataset(tmp_path / "walks", num_train=2, num_heldout=1, seed=0, num_frames=20)
    records = {
        (split, task): [json.loads(line) for line in (folder / f"{split}.{task}.jsonl").open()]
        for split in ("train", "heldout")
        for task in TASKS
    }
    assert {key: len(rows) for key, rows in records.items()} == {
        (split, task): count for split, count in (("train", 2), ("heldout", 1)) for task in TASKS
    }
    streams = {
        split: {path for task in TASKS for row in records[split, task] for path in row["streams"].values()}
        for split in ("train", "heldout")
    }
    assert not streams["train"] & streams["heldout"]
    record = records["heldout", "tracking"][0]
    source = ClipSource(video=str(folder / record["video"]))
    clip = read_source(source, settings=MediaSettings(fps=5.0, min_pixels=784, max_pixels=3136))
    sensor, motion = (read_stream(folder / record["streams"][name]) for name in ("sensor", "motion"))
    assert sensor.duration_s == motion.duration_s == pytest.approx(clip.duration_s) == 2.0
    assert len(sensor.values_TC) == 20 and clip.frames_FHWC.shape == (10, SIZE_PX, SIZE_PX, 3)
    (sample,) = READERS["jsonl"](str(folder / "heldout.understanding.jsonl"), None)
    assert sample.columns["target"] == sample.answer == records["heldout", "text_to_motion"][0]["answer"]


@pytest.mark.parametrize(("num_train", "num_frames"), [(0, 20), (1, 3)])
def test_a_data_set_of_nothing_is_refused(tmp_path: Path, num_train: int, num_frames: int):
    with pytest.raises(ValueError, match="or more"):
        write_dataset(tmp_path / "walks", num_train=num_train, num_heldout=1, seed=0, num_frames=num_frames)


def test_a_folder_with_somebodys_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by"):
        write_dataset(tmp_path, num_train=1, num_heldout=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
