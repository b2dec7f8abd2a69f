"""Questions about videos that the demo did not make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo.commands.ask import (
    Answer,
    as_record,
    cited_frames,
    lines_of,
    main,
    read_answer,
    save_frames,
)
from grpo.media.clip import ClipSource
from grpo.media.reading import read_source
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.run.model_inputs import read_inputs
from tests.support import tiny
from tests.support.served import demo_model
from tests.support.videos import read_number, write_video

QUESTION = "Which object does the hand take?"
OPTIONS = ("red", "green", "white", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(demo_model(tmp_path_factory.mktemp("moved") / "final"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six seconds of numbered pictures, 30 a second."""
    return write_video(tmp_path_factory.mktemp("videos") / "numbers.mp4", num_frames=180)


def asked(model: str, video: str, *more: str) -> list[str]:
    return [model, video, QUESTION, *(word for text in OPTIONS for word in ("--option", text)), *more]


def test_the_answer_is_the_models_likeliest_about_the_frames_of_its_training(
    model: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = tmp_path / "cited"
    more = ["--json", "--start", "1", "--end", "5", "--frames", str(frames)]
    assert main(asked(model, video, *more)) == 0
    answer = json.loads(capsys.readouterr().out)
    source = ClipSource(video=video, start_s=1.0, end_s=5.0)
    settings = read_inputs(model).media
    clip = read_source(source, settings=settings, patches=tiny.family().patches)
    prompt = tiny.prompt(tiny.sample(question=QUESTION, options=OPTIONS), clip)
    greedy = Sampling(group_size=1, max_new_tokens=24, temperature=0.0)
    (group,) = TransformersEngine(tiny.policy()).generate([prompt], greedy, [0])
    assert answer["text"] == group.rollouts[0].text
    assert answer["answer"] in "ABCD" and answer["option"] == OPTIONS["ABCD".index(answer["answer"])]
    # The clip's second that the text has is one later in the file.
    [(start_s, end_s)] = answer["moments_s"]
    cited = re.search(r"<keyframes>\s*([\d.]+)\s*</keyframes>", answer["text"])
    assert cited and float(cited[1]) + 1 == start_s == end_s
    (picture,) = answer["frames"]
    # frames are sampled twice a second, 30 pictures a second
    assert read_number(np.asarray(Image.open(picture))) == pytest.approx(30 * start_s, abs=8)


def test_one_question_is_printed_in_the_parts_that_were_asked_for(
    model: str, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(model, video, "--start", "1", "--end", "5")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["reasoning", "moments", "answer"]


def test_the_texts_that_ended_a_completion_in_training_end_an_answer(
    model: str, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--json", "--start", "1", "--end", "5", "rollout.stop=[</think>]"]
    assert main(asked(model, video, *more)) == 0
    assert json.loads(capsys.readouterr().out)["text"].endswith("</think>")


def test_what_can_not_be_read_is_shown_as_it_is(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain base model: it was not trained for this prompt."""
    settings = [
        "media.min_pixels=784",
        "media.max_pixels=3136",
        "media.max_frames=8",
        "rollout.max_new_tokens=4",
    ]
    assert main([str(tiny.BASE_POLICY), video, "Why?", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "answer:    (none that can be read)" in lines
    assert lines[-1].startswith("the text:  ")


def test_a_completion_is_read_by_its_tags() -> None:
    answer = answered("<think> I look. </think><keyframes> 3.5, 4-5 </keyframes><answer> (b) </answer>")
    assert answer.reasoning == "I look." and answer.moments == [(1, (3.5, 3.5)), (1, (4.0, 5.0))]
    assert (answer.answer, answer.option) == ("B", "green")
    other = answered("<keyframes> soon </keyframes><answer> black </answer>")
    assert (other.reasoning, other.moments, other.answer, other.option) == (None, None, "black", None)
    assert answered("B").answer is None


def answered(text: str, **fields: Any) -> Answer:
    prompt = tiny.prompt(tiny.sample(options=OPTIONS, **fields), tiny.clip())
    return read_answer(tiny.rollout(prompt, [1], text=text))


def test_moments_are_times_of_the_file() -> None:
    source = ClipSource(video="long.mp4", start_s=75.0)
    prompt = tiny.prompt(tiny.sample(clip_source=source), tiny.clip())
    answer = answered("<think>x</think><keyframes>3.5, 44-45.25</keyframes><answer>red</answer>")
    assert [*lines_of(prompt, answer, [Path("a.png")])] == [
        "reasoning: x",
        "moments:   1:18.5, 1:59.0-2:00.2",
        "answer:    A (red)",
        "frame:     a.png",
    ]


def test_moments_of_several_videos_are_times_of_their_own_files(tmp_path: Path) -> None:
    """The picture between the videos has no number, and the second video's clip starts at 75 s of its file."""
    cut = ClipSource(video="long.mp4", start_s=75.0)
    media = (ClipSource(video="a.mp4"), ClipSource(frames=("b.png",)), cut)
    clips = (tiny.clip(), tiny.picture(), tiny.clip())
    prompt = tiny.prompt(tiny.sample(clip_source=media[0], media=media, options=OPTIONS), clips)
    text = "<think>x</think><keyframes>1: 1.0, 2: 3.5-4</keyframes><answer>red</answer>"
    answer = read_answer(tiny.rollout(prompt, [1], text=text))
    assert answer.moments == [(1, (1.0, 1.0)), (2, (3.5, 4.0))]
    assert "moments:   1: 0:01.0, 2: 1:18.5-1:19.0" in [*lines_of(prompt, answer, [])]
    record = as_record(prompt, answer, [])
    assert record["moments_s"] == [[1.0, 1.0], [78.5, 79.0]] and record["moments_videos"] == [1, 2]
    names = [path.name for path in save_frames(prompt, answer, tmp_path / "frames")]
    assert names[0] == "1_00001.00s.png" and {name[:2] for name in names} == {"1_", "2_"}


def test_a_question_about_two_videos_and_a_picture_is_asked(
    model: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "now.png")
    Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(picture)
    more = ["--also", picture, "--also", video, "--end", "2", "--json", "rollout.max_model_tokens=4096"]
    assert main(asked(model, video, *more)) == 0
    assert json.loads(capsys.readouterr().out)["text"]


def test_cited_frames_are_those_within_a_span_or_the_nearest() -> None:
    clip = tiny.clip(16, fps=2.0)  # a frame each 0.5 s, 8 s long
    assert cited_frames(clip, [(1.0, 2.0)]) == [2, 3, 4]
    assert cited_frames(clip, [(3.2, 3.2), (0.1, 0.2), (3.0, 3.0)]) == [0, 6]
    assert cited_frames(clip, [(7.9, 60.0)]) == [15]
    assert cited_frames(clip, [(9.0, 12.0)]) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "{video}", "Why?"], "no model folder with a config.json at nowhere"),
        (["{model}", "nowhere.mp4", "Why?"], "nowhere.mp4"),
        (["{model}", "{video}", "Which", "object"], "'object' is no key=value: put the question in quotes"),
        (["{model}", "{video}", "Why?", "--start", "9"], "numbers.mp4"),
        (["{model}", "{video}", "Why?", "--start", "3", "--end", "2"], "--end 2 must be above --start 3"),
        (["{model}", "{video}", "Why <|video_pad|>?"], "which stands for a clip"),
        (["{model}", "{video}", "<image> why?", "--also", "{video}"], "mark one place for each"),
        (["{model}", "{video}", "Why? " * 200], "leaves room for 232"),
        (
            ["{model}", "{video}", "Why?", "--server", "http://127.0.0.1:9"],
            "http://127.0.0.1:9 does not answer",
        ),
    ],
)
def test_a_mistake_is_said_in_one_line(
    words: list[str], says: str, model: str, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(model=model, video=video) for word in words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
