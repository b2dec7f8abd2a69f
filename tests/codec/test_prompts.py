"""Streams in prompts and targets: their codes stand where `<name>` does, and what can't be coded is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo import train
from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, load_codec, save_codec
from grpo.codec.prompts import StreamCodes
from grpo.codec.streams import Stream, write_stream
from grpo.commands.doctor.records import examine
from grpo.data import READERS
from grpo.data.native import native_record
from grpo.feed.planner import Planner
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from grpo.media.sampling import MediaSettings
from grpo.media.writing import write_mp4
from grpo.policy.families import load_family
from grpo.rollout.given import completions_of
from tests.support import tiny
from tests.support.runs import SMALL, reset_process_state

STREAM = Stream(
    values_TC=np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 2.0], [0.0, 1.0]], np.float32),
    rate_hz=2.0,
    start_s=0.0,
    channels=("x", "y"),
    units=("m", "rad/s"),
)
CODES = (
    "<sensor><sensor_0_0><sensor_1_0><sensor_0_2><sensor_1_2>"
    "<sensor_0_3><sensor_1_3><sensor_0_0><sensor_1_2></sensor>"
)


def changed(**changes: Any) -> Stream:
    return replace(STREAM, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped policy with a codec: here its codes are plain text."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny.BASE_POLICY, folder)
    spec, quantiser = fit_bins("sensor", [STREAM], codebook_size=4, coverage=1.0)
    save_codec(Codec(spec, quantiser), folder / "codecs" / "sensor")
    return folder


def write_set(folder: Path, stream: Stream | None = None, **fields: Any) -> Path:
    """A data set of one question about a clip of two seconds with its stream."""
    write_stream(folder / "a.npz", STREAM if stream is None else stream)
    write_mp4(folder / "a.mp4", np.zeros((8, 56, 56, 3), np.uint8), fps=4)
    record = {
        "id": "a", "video": "a.mp4", "question": "<sensor> What?", "answer": "x", "task": "open",
        "streams": {"sensor": "a.npz"}, "target": "so: <sensor>",
    }  # fmt: skip
    record = {key: value for key, value in {**record, **fields}.items() if value is not None}
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    return folder / "train.jsonl"


def sample_of(folder: Path, stream: Stream | None = None, **fields: Any) -> Sample:
    return READERS["jsonl"](str(write_set(folder, stream, **fields)), None)[0]


def test_codes_stand_where_the_name_of_a_stream_does(model: Path, tmp_path: Path):
    family, sample = load_family(str(model)), sample_of(tmp_path)
    wording = {"template": "{question}", "option": "", "tags": ()}
    prompt = family.render(replace(sample, clip_source=None), None, **wording)
    assert f"{CODES} What?" in prompt.text
    assert family.decode(prompt.token_ids) == prompt.text
    ((text, token_ids),) = completions_of(sample, family, wording="{target}", max_new_tokens=1000)
    assert text == f"so: {CODES}" and family.decode(token_ids) == text


def test_the_codes_are_those_of_the_models_own_codec(model: Path, tmp_path: Path):
    codec = load_codec(model / "codecs" / "sensor")
    np.testing.assert_array_equal(codec.encode(STREAM), [[0, 0], [2, 2], [3, 3], [0, 2]])
    sample = sample_of(tmp_path)
    codes = StreamCodes(model / "codecs")
    assert codes.in_text("<sensor><sensor>, <motion>", sample) == f"{CODES}{CODES}, <motion>"
    assert codes.in_text("<sensor>", replace(sample, streams={})) == "<sensor>"


def test_a_sample_has_its_streams_under_the_media_root_and_a_record_again(tmp_path: Path):
    sample = sample_of(tmp_path)
    assert sample.streams == {"sensor": str(tmp_path / "a.npz")} and sample.columns == {
        "target": "so: <sensor>"
    }
    assert native_record(sample, tmp_path)["streams"] == {"sensor": "a.npz"}


@pytest.mark.parametrize(
    ("streams", "problem"),
    [
        (["a.npz"], "'streams' must have a file for each codec's name"),
        ({"Sensor_1": "a.npz"}, "'streams' must have a file for each codec's name"),
        ({"video": "a.npz"}, "<video> stands for what is shown"),
        ({"sensor": "../a.npz"}, "leads out of the media root"),
        ({"sensor": 3}, "'streams' must be a text"),
    ],
)
def test_streams_that_are_none_are_refused_with_their_line(tmp_path: Path, streams: object, problem: str):
    with pytest.raises(ValueError, match=rf"train.jsonl:1: .*{problem}"):
        sample_of(tmp_path, streams=streams)


BAD: dict[str, tuple[Stream | None, dict[str, Any], str]] = {
    "another rate": (changed(rate_hz=4.0), {"end_s": 1.0}, r"a.npz: the stream has 4 Hz, the codec sensor 2 Hz"),
    "another unit": (changed(units=("cm", "rad/s")), {}, r"a.npz: .*x in cm and not m"),
    "other channels": (changed(channels=("x", "z")), {}, r"a.npz: .*without y, with z"),
    "too long": (changed(values_TC=np.zeros((8, 2), np.float32)), {}, r"'sensor' ends at 4 s, and the clip at 2 s: .*"),
    "another clock": (changed(start_s=100.0), {}, r"'sensor' starts at 100 s, and the clip at 0 s"),
    "a window of the clip": (None, {"start_s": 0.0, "end_s": 1.0}, r"'sensor' ends at 2 s, and the clip at 1 s"),
    "short video": (changed(start_s=1.0), {"start_s": 1.0, "end_s": 3.0}, r"'sensor' ends at 3 s, and the clip at 2 s"),
    "no file": (None, {"streams": {"sensor": "b.npz"}}, r"b.npz: no such file"),
    "no codec": (None, {"question": "<touch>", "streams": {"touch": "a.npz"}}, r"no codec 'touch', but sensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_stream_that_does_not_fit_stops_a_run_at_its_start(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stream, fields, problem = BAD[name]
    data = f"data.train=[{{reader: jsonl, path: {write_set(tmp_path, stream, **fields)}}}]"
    with pytest.raises(SystemExit, match=rf"^error: .*train.jsonl:1: sample a: .*{problem}"):
        train.main([*SMALL, data, "data.eval=[]", f"model.path={model}", f"run_dir={tmp_path}/run"])
    reset_process_state()


def planner_of(model: Path) -> Planner:
    return Planner(
        family=load_family(str(model)),
        settings=MediaSettings(),
        count_text=lambda _: 1,
        max_prompt_tokens=4096,
    )


def test_a_stream_whose_video_cannot_be_read_is_lost_with_its_sample_as_other_media_are(
    model: Path, tmp_path: Path
):
    planner, bad = planner_of(model), sample_of(tmp_path, changed(rate_hz=4.0), end_s=1.0)
    (tmp_path / "unreadable").mkdir()
    lost = sample_of(tmp_path / "unreadable")
    Path(lost.sources[0].path).write_bytes(b"no video")
    (refusal,) = planner.refusals([lost, bad], num_workers=2)
    assert "the stream has 4 Hz" in refusal


def test_images_end_where_their_last_one_does(model: Path, tmp_path: Path):
    sample = sample_of(tmp_path)
    source = ClipSource(frames=("a.png", "b.png"), frame_fps=2.0, end_s=2.0)
    with pytest.raises(ValueError, match=r"'sensor' ends at 2 s, and the clip at 1 s"):
        StreamCodes(model / "codecs").check(replace(sample, clip_source=source))
    StreamCodes(model / "codecs").check(replace(sample, clip_source=replace(source, frame_fps=1.0)))


def test_the_doctor_names_each_sample_whose_stream_does_not_fit(model: Path, tmp_path: Path):
    bad = sample_of(tmp_path, changed(rate_hz=4.0), end_s=1.0)
    (problem,), plans = examine([bad], planner_of(model), num_clips=None, num_workers=1)
    assert "train.jsonl:1" in str(problem) and "the stream has 4 Hz" in str(problem) and plans == []


def test_actions_may_follow_the_clip(model: Path, tmp_path: Path):
    sample = sample_of(tmp_path)
    assert sample.clip_source is not None
    # The clip ends at 2 s, where what is done next starts.
    write_stream(tmp_path / "a.npz", changed(start_s=2.0))
    StreamCodes(model / "codecs").check(sample)
    write_stream(tmp_path / "a.npz", changed(start_s=3.0))
    with pytest.raises(ValueError, match="'sensor' starts at 3 s, and the clip at 0 s"):
        StreamCodes(model / "codecs").check(sample)


def test_nan_in_a_sensor_is_refused_with_its_channel_and_step(model: Path, tmp_path: Path):
    sample = sample_of(tmp_path)
    values_TC = STREAM.values_TC.copy()
    values_TC[2, 1] = np.nan
    with np.load(tmp_path / "a.npz") as arrays:
        np.savez(tmp_path / "a.npz", **{**arrays, "values": values_TC})
    with pytest.raises(ValueError, match=r"a.npz: channel y is nan at time step 2"):
        StreamCodes(model / "codecs").check(sample)


def test_streams_of_a_question_without_a_clip_have_one_clock(model: Path, tmp_path: Path):
    write_stream(tmp_path / "b.npz", changed(start_s=1.0))
    sample = sample_of(tmp_path, video=None, streams={"sensor": "a.npz", "motion": "b.npz"})
    with pytest.raises(ValueError, match=r"'motion' starts at 1 s, and the stream 'sensor' at 0 s"):
        StreamCodes(model / "codecs").check(sample)


def test_a_stream_shorter_than_one_code_is_refused(model: Path, tmp_path: Path):
    codes = StreamCodes(model / "codecs")
    codec = codes.codecs["sensor"]
    codes.codecs["sensor"] = Codec(replace(codec.spec, downsampling=8), codec.quantiser)
    with pytest.raises(ValueError, match=r"a.npz: 4 time steps are shorter than one code of sensor, 8"):
        codes.check(sample_of(tmp_path))
