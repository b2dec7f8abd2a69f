"""Media files that are replaced, copied or removed under a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.groups import Prompt, Sample
from grpo.media.clip import ClipSource, MediaError
from grpo.run.folder import RunDir, read_rows
from grpo.run.media_files import MediaFiles, all_files, files_of
from grpo.startup.checks import Start
from tests.support import tiny
from tests.support.runs import run


def sample_of(path: Path) -> Sample:
    return tiny.sample(path.stem, clip_source=ClipSource(video=str(path)))


def render(sample: Sample, clip: object) -> Prompt:
    return Prompt(sample=sample, clip=None, token_ids=(1,), tags=())


def learned(paths: list[str]) -> MediaFiles:
    media = MediaFiles({})
    media.known.update(media.learn(paths))
    return media


@pytest.fixture
def video(tmp_path: Path) -> Path:
    file = tmp_path / "a.mp4"
    file.write_bytes(bytes(range(256)) * 1000)
    return file


def replace_end(video: Path) -> None:
    with video.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"other")


def test_a_start_that_came_to_no_step_knows_no_files(video: Path, tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    run_dir.path.mkdir()
    learned([str(video)]).write(run_dir.media_file)
    begun: Any = Start.media.func
    assert not begun(SimpleNamespace(run_dir=run_dir)).known
    run_dir.append_metrics({"step": 0})
    assert [*begun(SimpleNamespace(run_dir=run_dir)).known] == [str(video)]


def test_a_video_that_has_changed_loses_its_question(video: Path) -> None:
    media, sample = learned([str(video)]), sample_of(video)
    checked = media.guarded(render)
    assert checked(sample, []).sample is sample and not media.lost([str(video)])
    os.utime(video, ns=(1, 1))  # a copy has another time
    assert checked(sample, []).sample is sample and not media.lost([str(video)])
    replace_end(video)
    with pytest.raises(MediaError, match="a.mp4: has changed since the run began"):
        checked(sample, [])
    assert media.lost([str(video)]) == {str(video)}


def test_what_is_not_known_or_gone_is_not_called_changed(video: Path) -> None:
    media, sample = learned([str(video)]), sample_of(video)
    other = sample_of(video.with_name("b.mp4"))
    assert MediaFiles({}).guarded(render)(sample, []) and media.guarded(render)(other, [])
    video.unlink()
    # Its frames are in memory, or it is the loader that misses the file.
    assert media.guarded(render)(sample, [])
    assert media.lost([str(video), "b.mp4"]) == {str(video)}
    assert MediaFiles({}).learn([str(video)]) == []


def test_images_are_known_by_the_first_and_the_last_and_a_folder_by_its_list(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [folder / f"{number}.png" for number in range(3)]
    for name in names:
        name.write_bytes(b"image")
    listed = ClipSource(frames=tuple(map(str, names)), frame_fps=1.0)
    whole = ClipSource(frames=(str(folder),), frame_fps=1.0)
    sources = [listed, whole, None]
    samples = [tiny.sample("s", clip_source=source) for source in sources]
    ends = [str(names[0]), str(names[2])]
    assert [files_of(sample) for sample in samples] == [ends, [str(folder)], []]
    several = tiny.sample("s", clip_source=whole, media=(whole, listed, whole))
    assert files_of(several) == [str(folder), *ends]
    paths = all_files(samples)
    media = learned(paths)
    assert len(paths) == 3 and not media.lost(paths)
    names[2].write_bytes(b"another")
    assert media.lost(paths) == {str(names[2]), str(folder)}


def test_what_is_known_is_stored(video: Path, tmp_path: Path) -> None:
    media, file = learned([str(video)]), tmp_path / "media_files.json"
    media.write(file)
    assert MediaFiles.read(file).known == media.known and not MediaFiles.read(tmp_path / "none").known
    for damaged in (b"", b"[]", b'{"a": 1}', b'{"a": ["x", 1, 2]}', b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"run_dir: .*media_files.json: .*put it back, or remove it"
        ) as caught:
            MediaFiles.read(file)
        assert "\n" not in str(caught.value)


def test_a_run_goes_on_without_clips_that_were_replaced_or_removed(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, folder = shutil.copytree(clips, tmp_path / "clips"), tmp_path / "run"
    few = ["eval.every_steps=0", "checkpoint.every_steps=1", "media.cache_disk_gib=0", "media.cache_gib=0"]
    few.append("seed=${oc.env:SEED_OF_NO_TEST,0}")
    run(folder, own, "num_steps=1", *few)
    videos = [own / json.loads(line)["video"] for line in (own / "train.jsonl").open()]
    shutil.copy(videos[-1], videos[0])
    videos[1].unlink()
    capsys.readouterr()
    run(folder, own, "num_steps=4", *few)
    assert "${oc.env:SEED_OF_NO_TEST,0}" in (folder / "config.yaml").read_text()
    [note] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert (
        "2 media files have changed or are gone since the run began, and 2 questions lose their groups"
        in note
    )
    lost = {row["sample_id"]: row["reason"] for row in read_rows(folder / "failures.jsonl")}
    assert len(lost) == 2
    assert any(f"{videos[0]}: has changed since the run began" in reason for reason in lost.values())
    assert any(str(videos[1]) in reason for reason in lost.values())
