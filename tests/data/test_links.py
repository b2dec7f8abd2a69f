"""Links among a data set's media: inside the media root they are followed, out of it only where a setting says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo.benchmarks import BENCHMARKS
from grpo.benchmarks.questions import read_questions
from grpo.commands.doctor.records import read_set
from grpo.config.evaluate import BenchmarkFiles
from grpo.config.schema import DatasetConfig
from grpo.data import load_samples
from grpo.groups import Sample
from tests.support.readers import EGOCROSS, NATIVE, touch, write_json

REFUSED = "leads by a link out of the media root"


def load(folder: Path, *shown: dict[str, Any], **settings: Any) -> list[Sample]:
    """The samples of a record for each thing shown, below `folder/set`."""
    plain = {
        key: value for key, value in NATIVE.items() if key not in ("video", "start_s", "end_s", "keyframes_s")
    }
    records = [{**plain, "id": f"k-{number}", **each} for number, each in enumerate(shown)]
    path = write_json(folder / "set" / "train.json", records)
    return load_samples([DatasetConfig(path=str(path), **settings)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with links: to a file of its own, to one outside, and folders of images with such links."""
    touch(tmp_path / "set" / "a.mp4")
    touch(tmp_path / "secret" / "b.mp4")
    (tmp_path / "set" / "own.mp4").symlink_to("a.mp4")
    (tmp_path / "set" / "out.mp4").symlink_to(tmp_path / "secret" / "b.mp4")
    (tmp_path / "set" / "all").symlink_to(tmp_path / "secret")
    for name in ("0.jpg", "1.jpg"):
        touch(tmp_path / "set" / "frames" / name)
    (tmp_path / "set" / "frames" / "2.jpg").symlink_to(tmp_path / "secret" / "b.mp4")
    return tmp_path


def test_links_inside_the_media_root_are_followed_and_the_root_may_be_one(folder: Path) -> None:
    assert len(load(folder, {"video": "a.mp4"}, {"video": "own.mp4"})) == 2
    (folder / "link").symlink_to(folder / "set")
    [sample] = load(folder, {"video": "a.mp4"}, media_root=str(folder / "link"))
    assert sample.clip_source is not None and sample.clip_source.video == f"{folder}/link/a.mp4"


@pytest.mark.parametrize(
    "shown",
    [
        {"video": "out.mp4"},
        {"video": "all/b.mp4"},
        {"frames": ["frames/0.jpg", "frames/2.jpg"], "frame_fps": 1.0},
        {"frames": "frames", "frame_fps": 1.0},
        {"media": [{"video": "a.mp4"}, {"image": "frames/2.jpg"}]},
        {"video": "a.mp4", "streams": {"sensor": "out.mp4"}},
    ],
    ids=[
        "file",
        "folder",
        "one of many images",
        "one in a folder of images",
        "one of several media",
        "stream",
    ],
)
def test_links_that_lead_out_are_refused_unless_they_are_allowed(shown: dict[str, Any], folder: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"train.json: record 2: {folder}/set/.* {REFUSED} .*/set, to .*/secret/b.mp4"
    ):
        load(folder, {"video": "a.mp4"}, shown)
    with pytest.raises(ValueError, match="follow_links: true beside the data's path allows it"):
        load(folder, shown, media_root=str(folder / "set"))
    assert len(load(folder, shown, follow_links=True)) == len(load(folder, shown, media_root="/")) == 1


def test_the_doctor_lists_every_link_and_keeps_the_others(folder: Path) -> None:
    path = folder / "set" / "train.json"
    with pytest.raises(ValueError, match="1 more bad record"):
        load(folder, {"video": "out.mp4"}, {"video": "a.mp4"}, {"video": "all/b.mp4"})
    samples, problems = read_set(DatasetConfig(path=str(path)))
    assert len(samples) == 1 and [problem.source[-8:] for problem in problems] == ["record 1", "record 3"]


def test_a_benchmarks_own_reader_refuses_them_too(folder: Path) -> None:
    record = EGOCROSS | {"video_path": ["/frames/0.jpg", "/frames/2.jpg"]}
    files = BenchmarkFiles(path=str(write_json(folder / "set" / "testbed.json", [record])))
    with pytest.raises(ValueError, match=REFUSED):
        read_questions(BENCHMARKS["egocross"], files)
    allowed = BenchmarkFiles(path=files.path, follow_links=True)
    assert len(read_questions(BENCHMARKS["egocross"], allowed)) == 1
