"""Nymeria's files, made up with the published keys, shapes and columns: what is read, repaired and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.codec.streams import read_stream
from grpo.data import READERS
from grpo.media.writing import write_mp4
from grpo.motion.features import MOTION
from grpo.motion.nymeria import (
    NARRATIONS,
    Clock,
    Narration,
    read_body,
    read_clocks,
    read_narrations,
    split_of,
    text_of,
    write_dataset,
)
from grpo.motion.walker import draw_plan, walk

NUM_FRAMES, START_US = 240, 5_000_000
MOTION_ROW = {
    "Describe my body posture": "I stand upright.",
    "Describe my hands/arms motion": "My arms hang, and \"swing\".",
    "Describe my legs/feet motion": "I step.",
    "Describe my focus attention": "",
}  # fmt: skip


def walker():
    rng = np.random.default_rng(3)
    return walk(draw_plan(rng, 1.0), rng, num_frames=NUM_FRAMES, rate_hz=240.0)


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions, real part first, of rotations by less than half a turn."""
    w = np.sqrt(np.maximum(1 + np.trace(rotations, axis1=-2, axis2=-1), 1e-9)) / 2
    parts = [rotations[..., b, a] - rotations[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))]
    return np.stack([w, *(part / (4 * w) for part in parts)], axis=-1)


def body_arrays() -> dict[str, np.ndarray]:
    """All arrays of a body file, by the keys of the official code."""
    motion = walker()
    flat = motion.positions_TJ3.reshape(NUM_FRAMES, 69).astype(np.float32)
    turned = quaternions(motion.rotations_TJ33).reshape(NUM_FRAMES, 92).astype(np.float32)
    return {
        "timestamps_us": START_US + np.round(np.arange(NUM_FRAMES) * 1e6 / 240).astype(np.int64),
        "frameCount": np.array(NUM_FRAMES), "frameRate": np.array(240), "segmentCount": np.array([23]),
        "segment_tXYZ": flat, "segment_qWXYZ": turned,
        "identity_segment_tXYZ": flat[0], "identity_segment_qWXYZ": turned[0],
        "tpose_segment_tXYZ": flat[0], "tpose_segment_qWXYZ": turned[0],
        "foot_contacts": np.zeros((NUM_FRAMES, 4), bool),
        "sensor_tXYZ": np.zeros((NUM_FRAMES, 51), np.float32), "sensor_qWXYZ": np.zeros((NUM_FRAMES, 68), np.float32),
    }  # fmt: skip


def write_body(sequence: Path, **changes: Any) -> Path:
    path = sequence / "body" / "xdata.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in {**body_arrays(), **changes}.items() if value is not None})
    return path


def write_csv(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"request_id": 1, "gaia_id": 2, "annotator": "a", "creation_time": "2024-01-01"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*about, *rows[0]])
        writer.writeheader()
        writer.writerows(about | row for row in rows)
    return path


def test_a_body_file_is_the_motion_that_was_recorded(tmp_path: Path):
    body, motion = read_body(write_body(tmp_path)), walker()
    assert body.positions_TJ3 == pytest.approx(motion.positions_TJ3, abs=1e-5)
    assert body.rotations_TJ33 == pytest.approx(motion.rotations_TJ33, abs=1e-3)
    assert (body.times_s[0], body.times_s[-1]) == pytest.approx((5.0, 5.0 + 239 / 240), abs=1e-5)


def test_odd_steps_and_lacking_rotations_are_repaired_as_officially(tmp_path: Path):
    arrays = body_arrays()
    arrays["timestamps_us"][100] += 2000
    arrays["segment_qWXYZ"][50, 4:8] = 0
    body, motion = read_body(write_body(tmp_path, **arrays)), walker()
    assert np.diff(body.times_s) == pytest.approx(1 / 240, abs=2e-6)
    assert body.rotations_TJ33[50, 1] == pytest.approx(motion.rotations_TJ33[49, 1], abs=1e-3)


def shifted_us() -> np.ndarray:
    times_us = body_arrays()["timestamps_us"]
    times_us[100:] += 500_000
    return times_us


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"segment_tXYZ": None}, "segment_tXYZ"),
        ({"segment_tXYZ": np.zeros((NUM_FRAMES, 66))}, r"segment_tXYZ \(240, 66\)"),
        ({"segmentCount": np.array([24])}, "24 segments"),
        ({"segment_tXYZ": np.full((NUM_FRAMES, 69), np.nan)}, "no finite numbers"),
        ({"timestamps_us": shifted_us()}, r"1 odd steps between times, 0.5"),
    ],
)
def test_a_body_file_that_is_none_is_refused_with_its_name(
    tmp_path: Path, changes: dict[str, Any], problem: str
):
    with pytest.raises(ValueError, match=rf"xdata.npz: .*{problem}"):
        read_body(write_body(tmp_path, **changes))


def test_narrations_are_their_columns_of_text(tmp_path: Path):
    file = write_csv(
        tmp_path / "motion_narration.csv",
        {"start_time": 1.5, "end_time": 6.5, **MOTION_ROW},
        {"start_time": 6.5, "end_time": 9.0, **dict.fromkeys(MOTION_ROW, "")},
    )
    (found,) = read_narrations(file, NARRATIONS["motion_narration"])
    assert found == Narration(
        start_s=1.5, end_s=6.5, text='I stand upright. My arms hang, and "swing". I step.'
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"start_time": 1, "end_time": 2}, "no column 'Describe my activity'"),
        ({"start_time": "soon", "end_time": 2, "Describe my activity": "x"}, ":2: .*soon"),
    ],
)
def test_narrations_without_times_or_texts_are_refused(tmp_path: Path, row: dict[str, object], problem: str):
    with pytest.raises(ValueError, match=rf"activity.csv.*{problem}"):
        read_narrations(write_csv(tmp_path / "activity.csv", row), NARRATIONS["activity_summarization"])


def test_a_stretch_has_the_narration_of_half_of_it_or_more():
    told = [Narration(start_s=0, end_s=4, text="walks"), Narration(start_s=4, end_s=5, text="sits")]
    assert [text_of(start, start + 2, told) for start in (0.0, 3.0, 4.1, 9.0)] == ["walks", "walks", "", ""]
    assert text_of(0, 1, []) == ""


def test_a_person_is_in_one_split():
    names = [
        f"20230607_s{n}_{first}_{last}_act{n}_{n}x"
        for n in range(3)
        for first in "abcdef"
        for last in "uvwxyz"
    ]
    splits = {
        split: {"_".join(n.split("_")[2:4]) for n in names if split_of(n, 30) == split}
        for split in ("train", "heldout")
    }
    assert splits["train"] and splits["heldout"] and not splits["train"] & splits["heldout"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences, one of each split; that of training has a narration and a clip."""
    people = ("ann_lee", "bob_ray", "cid_orr", "dan_poe", "eve_fox", "flo_gee")
    names = [f"20230607_s0_{person}_act0_abc123" for person in people]
    for split in ("train", "heldout"):
        sequence = tmp_path / "nymeria" / next(name for name in names if split_of(name, 50) == split)
        write_body(sequence)
        write_csv(
            sequence / "narration" / "atomic_action.csv",
            {"start_time": 1.0, "end_time": 9.0, "Describe my atomic actions": "I walk."},
        )
    return tmp_path / "nymeria"


def test_sequences_become_a_data_set_of_their_windows(root: Path, tmp_path: Path):
    (name,) = (each.name for each in root.iterdir() if split_of(each.name, 50) == "train")
    (tmp_path / "clips").mkdir()
    write_mp4(tmp_path / "clips" / f"{name}.mp4", np.zeros((20, 32, 32, 3), np.uint8), fps=10)
    clocks = {name: Clock(device_to_timecode_s=4.0, video_start_s=4.5)}
    out = write_dataset(
        root, tmp_path / "out", num_frames=4, heldout_percent=50, clocks=clocks, clips=tmp_path / "clips"
    )
    records = [json.loads(line) for line in (out / "train.tracking.jsonl").open()]
    # A second of motion is two windows of 0.4 s; they begin at the time code 5 s, which is 0.5 s in the clip.
    assert [(record["start_s"], record["end_s"]) for record in records] == [
        (pytest.approx(0.5), pytest.approx(0.9)),
        (pytest.approx(0.9), pytest.approx(1.3)),
    ]
    motion = read_stream(out / records[1]["streams"]["motion"])
    assert (motion.values_TC.shape, motion.rate_hz, motion.start_s) == (
        (4, len(MOTION)),
        10.0,
        pytest.approx(0.9),
    )
    assert records[0]["answer"] == "I walk."
    # Without a clock there are no texts, and without a clip no questions about it.
    assert {file.name for file in out.glob("heldout.*")} == {"heldout.tracking_blind.jsonl"}
    assert len(READERS["jsonl"](str(out / "train.text_to_motion.jsonl"), None)) == 2


def test_windows_behind_their_clips_end_are_left_out(root: Path, tmp_path: Path):
    (name,) = (each.name for each in root.iterdir() if split_of(each.name, 50) == "train")
    (tmp_path / "clips").mkdir()
    # The clip ends at 1 s, and the second window would at 1.3 s.
    write_mp4(tmp_path / "clips" / f"{name}.mp4", np.zeros((10, 32, 32, 3), np.uint8), fps=10)
    clocks = {name: Clock(device_to_timecode_s=4.0, video_start_s=4.5)}
    out = write_dataset(
        root, tmp_path / "out", num_frames=4, heldout_percent=50, clocks=clocks, clips=tmp_path / "clips"
    )
    assert len((out / "train.tracking.jsonl").read_text().splitlines()) == 1


def test_a_data_set_is_made_anew_when_its_clocks_or_files_have_changed(root: Path, tmp_path: Path):
    (name,) = (each.name for each in root.iterdir() if split_of(each.name, 50) == "train")

    def is_told(offset_s: float) -> bool:
        clocks = {name: Clock(device_to_timecode_s=offset_s)}
        out = write_dataset(root, tmp_path / "out", num_frames=4, heldout_percent=50, clocks=clocks)
        return (out / "train.text_to_motion.jsonl").exists()

    assert is_told(4.0)
    marker = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns
    assert is_told(4.0) and (tmp_path / "out" / "dataset.json").stat().st_mtime_ns == marker
    # The sequence would be told of long after its narration's end.
    assert not is_told(-90.0)
    narration = root / name / "narration" / "atomic_action.csv"
    narration.write_text(narration.read_text().replace("1.0,9.0", "90.0,99.0"))
    assert is_told(-90.0)


def test_a_folder_without_sequences_of_both_splits_is_refused(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="of which none is in the split heldout"):
        write_dataset(root, tmp_path / "out", heldout_percent=0)


def test_clocks_of_another_form_are_refused(tmp_path: Path):
    file = tmp_path / "clocks.json"
    file.write_text('{"a": {"device_to_timecode_s": 1.0}}')
    assert read_clocks(file) == {"a": Clock(device_to_timecode_s=1.0)}
    file.write_text('{"a": {"offset": 1.0}}')
    with pytest.raises(ValueError, match=r"clocks.json: no clocks"):
        read_clocks(file)
