"""Several videos and pictures in one native record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from grpo.data import check_media
from grpo.data.native import native_record
from grpo.data.readers.jsonl import read_jsonl
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError
from tests.data.readers.test_jsonl import changed, without, write
from tests.support.videos import write_video


def media(listed: object, **changes: Any) -> dict[str, Any]:
    """A record of several media in place of a video."""
    return {**without("video", "start_s", "end_s", "keyframes_s"), "media": listed, **changes}


def test_several_media_are_in_order_and_times_are_the_first_videos(tmp_path: Path) -> None:
    listed = [
        {"image": "b.png"},
        {"video": "a.mp4", "start_s": 3, "end_s": 9, "keyframes_s": [[4, 5]]},
        {"frames": ["0.png", "1.png"], "frame_fps": 2.0, "keyframes_s": [0.5]},
        {"video": "a.mp4", "frame_s": 9},
    ]
    question = "<image> Then <video> and <video>, now <image>?"
    [sample] = read_jsonl(write(tmp_path, media(listed, question=question)))
    first, cut, sequence, now = sample.media
    assert first == ClipSource(frames=(f"{tmp_path}/b.png",)) and first.is_picture
    assert cut == ClipSource(video=f"{tmp_path}/a.mp4", start_s=3, end_s=9)
    assert sequence.frames == (f"{tmp_path}/0.png", f"{tmp_path}/1.png") and sequence.frame_fps == 2
    assert now == ClipSource(video=f"{tmp_path}/a.mp4", start_s=9, end_s=9) and now.is_picture
    assert sample.clip_source == cut and sample.num_videos == 2 and sample.question == question
    assert (sample.keyframes_s, sample.other_keyframes_s) == (((1.0, 2.0),), (((0.5, 0.5),),))
    span = media(listed, task="span", answer="4.0-5.5", options=None, question="When?")
    [asked] = read_jsonl(write(tmp_path, span))
    assert asked.answer == "1.0-2.5"  # from the first video's start
    # Without a list, nothing is looked for in the question.
    [plain] = read_jsonl(write(tmp_path, changed(question="What does <image> mean?")))
    assert plain.media == () and len(plain.sources) == 1


def test_a_span_answers_about_the_video_whose_number_it_has(tmp_path: Path) -> None:
    """In seconds from that video's start; the way back has them on its file's clock again."""
    listed = [
        {"video": "a.mp4", "start_s": 3.0, "end_s": 9.0},
        {"image": "b.png"},
        {"video": "c.mp4", "start_s": 10.0, "end_s": 20.0, "keyframes_s": [[12.0, 13.5]]},
    ]

    def asked(answer: object) -> Sample:
        record = media(listed, task="span", answer=answer, options=None, question="When is it?")
        [sample] = read_jsonl(write(tmp_path, record))
        return sample

    second, first = asked("2: 12.0-13.5"), asked("1: 4-5")
    assert (second.answer, first.answer) == ("2: 2.0-3.5", "1.0-2.0")
    assert asked("video 2: (12, 13.5)").answer == second.answer and asked([4, 5]).answer == first.answer
    for sample in (second, first):
        assert read_jsonl(write(tmp_path, native_record(sample, tmp_path)))[0].answer == sample.answer
    assert native_record(second, tmp_path)["answer"] == "2: 12.0-13.5"
    for answer, says in (
        ("2: 4-5", "'answer': 4 to 5 s lies outside the clip, 10 s to 20 s"),
        ("3: 12-13", "such as 3.0-4.5 or, of the second of 2 videos, 2: 3.0-4.5, not '3: 12-13'"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            asked(answer)
    with pytest.raises(ValueError, match=r"such as 3\.0-4\.5, not '2: 1-2'"):
        read_jsonl(write(tmp_path, changed(task="span", answer="2: 1-2", options=None)))


def test_a_missing_one_of_several_media_is_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "b.png").write_text("no picture")
    samples = read_jsonl(write(tmp_path, media([{"video": "a.mp4"}, {"image": "c.png"}, {"image": "d.png"}])))
    with pytest.raises(
        FileNotFoundError, match=rf"train.jsonl:1: .* no such image: {tmp_path}/c.png \(and 1 more"
    ):
        check_media(samples, num_probes=0)
    samples = read_jsonl(write(tmp_path, media([{"video": "a.mp4"}, {"image": "b.png"}])))
    with pytest.raises(MediaError, match=rf"train.jsonl:1: {tmp_path}/b.png: cannot be read as an image"):
        check_media(samples, num_probes=8)


REFUSED = [
    (changed(media=[{"video": "a.mp4"}]), "'video' beside 'media': it belongs into the object of one of these"),
    (media([]), "'media' must list 1 to 32 videos or images, not 0"),
    (media([{"video": "a.mp4"}] * 33), "'media' must list 1 to 32 videos or images, not 33"),
    (media(["a.mp4"]), "'media' must be a list of objects, not ['a.mp4']"),
    (media([{"video": "a.mp4"}, {}]), "'media' 2: none of 'video', 'frames', 'image'"),
    (media([{"video": "a.mp4", "start": 3}]), "'media' 1: unknown key 'start'; there are video, frames, image,"),
    (media([{"image": "a.png", "start_s": 3}]), "'media' 1: 'start_s': an image is shown at no time"),
    (media([{"video": "a.mp4", "frame_s": 3, "end_s": 4}]), "'media' 1: 'end_s' beside 'frame_s': a single frame"),
    (media([{"frames": ["a.png"], "frame_s": 3}]), "'media' 1: 'frame_s' without a 'video'"),
    (media([{"frames": ["a.png"]}]), "'media' 1: 'frames' without 'frame_fps' or 'frame_times_s'"),
    (media([{"video": "../a.mp4"}]), "'media' 1: '../a.mp4' leads out of the media root"),
    (media([{"video": "a.mp4", "end_s": 4, "keyframes_s": [5]}]), "'media' 1: 'keyframes_s': 5 to 5 s lies outside"),
    (
        media([{"video": "a.mp4", "keyframes_s": [1]}], keyframes_s=[2]),
        "'keyframes_s' beside 'media' and in it: they are of the same video",
    ),
    (
        media([{"video": "a.mp4"}, {"image": "b.png"}], question="<image> and <video>?"),
        "the places <image>, <video>, and its media are video, image: mark one place for each, in their order",
    ),
    (
        media([{"video": "a.mp4"}, {"video": "b.mp4"}], question="<video> what?"),
        "the places <video>, and its media are video, video",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_media_that_are_not_right_are_refused_with_file_and_line(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, changed(id="fine"), line)
    with pytest.raises(ValueError) as caught:
        read_jsonl(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:2: ") and message in said and "\n" not in said
