"""LLaVA's and ShareGPT's conversations: turns to questions, media tokens, clip bounds, dataset_info.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from grpo.data.readers.conversations import split_options
from grpo.data.readers.llava import read_llava
from grpo.data.readers.sharegpt import read_sharegpt
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support.clips import source_of, video_of
from tests.support.readers import LLAVA, SHAREGPT, Record, write_json


def llava(folder: Path, **changes: Any) -> list[Sample]:
    return read_llava(write_json(folder / "ego4d_vqa.json", [LLAVA | changes]))


def said(*turns: str) -> list[Record]:
    return [{"from": "gpt" if number % 2 else "human", "value": value} for number, value in enumerate(turns)]


def test_evuds_record_is_an_open_question(tmp_path: Path) -> None:
    path = tmp_path / "ego4d_vqa.json"
    assert llava(tmp_path) == [
        Sample(
            id="ego4d_vqa/0",
            question="Where did I put the lid?",
            answer="On the table.",
            task="open",
            source=f"{path}: record 1",
            clip_source=ClipSource(video=str(tmp_path / "clips/one.mp4")),
            columns={"id": 0, "target": "On the table."},
        )
    ]


def test_each_turn_is_a_sample_without_the_turns_before_it(tmp_path: Path) -> None:
    turns = said("<video>\nWhat is red?", "The cup.", "What did I open?", " The door.\n")
    samples = llava(tmp_path, conversations=turns, human_annotated=True, **{"duration_(s)": 12.5})
    assert [(s.id, s.question, s.answer) for s in samples] == [
        ("ego4d_vqa/0#1", "What is red?", "The cup."),
        ("ego4d_vqa/0#2", "What did I open?", "The door."),
    ]
    assert samples[0].clip_source == samples[1].clip_source
    others = {"id": 0, "human_annotated": True, "duration_(s)": 12.5}
    # What is trained on where completions are given is the reply as it stands, unless the record has a target.
    assert samples[1].columns == {**others, "target": " The door.\n"}
    [own] = llava(tmp_path, target="On it.")
    assert own.columns["target"] == "On it."


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"start_time": "12.5", "end_time": "20"}, (12.5, 20.0)),
        ({"start_time": "1:02.5", "end_time": "01:01:03"}, (62.5, 3663.0)),
        ({"start_time": 3, "end_time": 4.5}, (3.0, 4.5)),
        ({"start_frame": 60, "end_frame": 90, "fps": 20.0}, (3.0, 4.5)),
        # The observation is the last frame, whether the progress ends before or behind it.
        ({"start_frame": 60, "end_frame": 90, "current_observation_frame": 100, "fps": 20.0}, (3.0, 5.0)),
        ({"start_frame": 60, "end_frame": 90, "current_observation_frame": 80, "fps": 20.0}, (3.0, 4.0)),
        ({"start_time": None, "end_time": None, "start_frame": None, "fps": None}, (0.0, None)),
        ({"start_time": "1.5"}, (1.5, None)),
    ],
)
def test_egoits_bounds_are_seconds_of_the_file(bounds: Record, expected: tuple, tmp_path: Path) -> None:
    [sample] = llava(tmp_path, **bounds)
    assert (source_of(sample).start_s, source_of(sample).end_s) == expected


def test_egoits_media_tokens_leave_the_question_alone(tmp_path: Path) -> None:
    turns = said("<speech>\n<image>\nWhat is this?\nA. a cup\nB. a knife", "B.")
    [sample] = llava(tmp_path, conversations=turns, audio="clips/one.wav")
    assert (sample.question, sample.options, sample.answer) == ("What is this?", ("a cup", "a knife"), "B")
    assert (sample.task, sample.columns["audio"]) == ("choice", "clips/one.wav")


def test_a_conversation_without_media_is_about_text(tmp_path: Path) -> None:
    [sample] = llava(tmp_path, video=None, conversations=said("2 + 2?", "four"))
    assert sample.clip_source is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "vsr/1.jpg"}, "1 media tokens in a question for 2 videos or images"),
        ({"video": None}, "1 media tokens in a question for 0 videos or images"),
        (
            {"conversations": said("<video><video>What?", "x")},
            "2 media tokens in a question for 1 videos or images",
        ),
        ({"conversations": said("What?")}, "pairs of question and reply, not 1 turns"),
        ({"conversations": []}, "pairs of question and reply, not 0 turns"),
        ({"conversations": said("a", "b")[::-1]}, "turn 1 must be from 'human', not 'gpt'"),
        ({"conversations": "hello"}, "'conversations' must be a list of objects, not 'hello'"),
        ({"conversations": said("<video>\n", "x")}, "'question' must be a text that is not empty"),
        ({"conversations": said("<video>\nWhat?", " ")}, "'value' must be a text that is not empty"),
        ({"id": None}, "'id' is missing"),
        ({"id": 1.5}, "'id' must be a text that is not empty, not 1.5"),
        ({"start_time": "soon"}, "'start_time' must be seconds or hours:minutes:seconds, not 'soon'"),
        ({"start_time": "-1"}, "'start_time' must be seconds or hours:minutes:seconds, not '-1'"),
        ({"start_time": "9" * 400}, "'start_time' must be in seconds, 0 or more, not inf"),
        ({"start_time": 5, "end_time": 5}, "'end_time' (5) must lie behind 'start_time' (5)"),
        ({"start_frame": 5}, "'fps' is missing"),
        ({"start_frame": 5, "fps": 0}, "'fps' must be above 0"),
        ({"start_frame": -5, "fps": 1}, "'start_frame' must be a number, 0 or more, not -5"),
    ],
)
def test_what_cannot_be_translated_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        llava(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/ego4d_vqa.json: record 1: ") and message in str(
        caught.value
    )


def test_options_are_the_last_lines_from_a_on() -> None:
    assert split_options("Which?\nA) x\n(B) y\nC: z") == ("Which?", ("x", "y", "z"))
    for other in (
        "Which?",
        "Which?\nA) x",
        "Which?\nA) x\nC) y",
        "Which?\nA) x\nB) she reads\nthe letter",
        "Which option?\nAnswer with a letter.",
        "A) x\nB) y",
    ):
        assert split_options(other) == (other, ())


@pytest.mark.parametrize(
    "closing",
    [
        "Answer!",
        "Please respond with only the letter of the correct answer.",
        "Answer:",
        "\nThe best answer is:\n",
    ]
    + ["Answer with the option's letter from the given choices directly.", "Only give the best option."]
    + ["Please provide your answer by stating the letter followed by the full option.\nYour answer:"],
)
def test_a_closing_instruction_is_left_out(closing: str) -> None:
    assert split_options(f"Which?\nA) x\nB) y\n{closing}") == ("Which?", ("x", "y"))


@pytest.mark.parametrize("reply", ["B", "B.", "(B)", "b", "B. Silver", "B. Silver.", "B: silver", "Silver"])
def test_a_reply_that_names_an_option_is_a_choice(reply: str, tmp_path: Path) -> None:
    question = "What is the colour?\nA. Black\nB. Silver\nPlease respond with only the letter."
    [sample] = llava(tmp_path, conversations=said(question, reply))
    assert (sample.task, sample.answer, sample.options) == ("choice", "B", ("Black", "Silver"))
    assert sample.question == "What is the colour?"


def test_a_system_prompt_is_the_samples_own(tmp_path: Path) -> None:
    turn = {"from": "system", "value": "Be brief."}
    [of_llava] = llava(tmp_path, conversations=[turn, *said("What?", "A cup.")])
    first = {"role": "system", "content": "Be brief."}
    path = write_json(
        tmp_path / "train.json",
        [
            SHAREGPT | {"messages": [first, *SHAREGPT["messages"]]},
            SHAREGPT | {"system": "Be brief."},
            SHAREGPT | {"messages": [first | {"content": ""}, *SHAREGPT["messages"]]},
        ],
    )
    of_turn, of_column, of_none = read_sharegpt(path)
    for sample in (of_llava, of_turn, of_column):
        assert sample.system == "Be brief." and "Be brief." not in sample.question
    assert (of_none.system, of_none.columns) == ("", {"target": "C"})


def test_a_letter_that_is_no_option_stays_an_open_answer(tmp_path: Path) -> None:
    for reply, question in (("C", "Which?\nA) x\nB) y"), ("A cup", "Which?\nA) x\nB) y"), ("A", "Which?")):
        [sample] = llava(tmp_path, conversations=said(question, reply))
        assert (sample.task, sample.question, sample.answer) == ("open", question, reply)


def test_sharegpts_record_names_its_sample_by_its_place(tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.json", [SHAREGPT, SHAREGPT | {"domain": "animal"}])
    first, second = read_sharegpt(path, "/media")
    assert first == Sample(
        id="train/1",
        question="What is done?",
        answer="C",
        task="choice",
        source=f"{path}: record 1",
        options=("cutting", "washing", "peeling"),
        clip_source=ClipSource(video="/media/clips/one.mp4"),
        columns={"target": "C"},
    )
    assert (second.id, second.columns) == ("train/2", {"domain": "animal", "target": "C"})


def test_sharegpt_may_be_of_from_and_value(tmp_path: Path) -> None:
    record = {"conversations": said("<video>What?", "A cup.", "And?", "A knife."), "videos": ["one.mp4"]}
    samples = read_sharegpt(write_json(tmp_path / "train.json", [record]))
    assert [(s.id, s.answer) for s in samples] == [("train/1#1", "A cup."), ("train/1#2", "A knife.")]


CUSTOM = {
    "talk": [{"who": "me", "text": "<video>What?"}, {"who": "it", "text": "A cup."}],
    "clips": ["1.mp4"],
}
ENTRY = {
    "file_name": "sub/train.json",
    "formatting": "sharegpt",
    "columns": {"messages": "talk", "videos": "clips"},
    "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "it"},
}


def test_dataset_info_says_what_columns_and_tags_are_called(tmp_path: Path) -> None:
    path = write_json(tmp_path / "sub/train.json", [CUSTOM])
    with pytest.raises(ValueError, match="'conversations' is missing"):
        read_sharegpt(path)
    write_json(tmp_path / "dataset_info.json", {"other": {"file_name": "x.json"}, "mine": ENTRY})
    [sample] = read_sharegpt(path)
    assert (sample.question, sample.answer, video_of(sample)) == (
        "What?",
        "A cup.",
        str(tmp_path / "sub/1.mp4"),
    )
    assert sample.columns == {"target": "A cup."}


def test_dataset_info_without_tags_leaves_them_to_the_record(tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.json", [SHAREGPT])
    entry = {"file_name": "train.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    write_json(tmp_path / "dataset_info.json", {"mine": entry})
    assert read_sharegpt(path)[0].answer == "C"


def test_a_wrong_dataset_info_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.json", [SHAREGPT])
    for entry, message in (
        ({"formatting": "alpaca"}, "mine: 'formatting' must be sharegpt, not 'alpaca'"),
        ({}, "mine: 'formatting' must be sharegpt, not 'alpaca'"),
        ({"formatting": "sharegpt", "columns": []}, None),
        ({"formatting": "sharegpt", "columns": ["a"]}, r"mine: 'columns' must be an object, not \['a'\]"),
        ({"formatting": "sharegpt", "tags": {"role_tag": 3}}, "mine: 'role_tag' must be a text"),
    ):
        write_json(tmp_path / "dataset_info.json", {"mine": {"file_name": "train.json"} | entry})
        if message is None:
            assert read_sharegpt(path)
            continue
        with pytest.raises(ValueError, match=f"^{tmp_path}/dataset_info.json: {message}"):
            read_sharegpt(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["frames/0.jpg"]}, "1 media tokens in a question for 2 videos or images"),
        ({"images": ["a.jpg", "b.jpg"], "videos": []}, "1 media tokens in a question for 2 videos or images"),
        ({"images": "a.jpg", "videos": []}, "'images' must be a list of paths, not 'a.jpg'"),
        ({"videos": ["a.mp4", "b.mp4"]}, "1 media tokens in a question for 2 videos or images"),
        ({"videos": "a.mp4"}, "'videos' must be a list of paths, not 'a.mp4'"),
        ({"videos": []}, "1 media tokens in a question for 0 videos or images"),
        ({"videos": [7]}, "'videos' must be a text that is not empty, not 7"),
        ({"audios": ["a.wav"]}, "'audios' is not supported"),
        ({"messages": [*SHAREGPT["messages"], {"role": "system", "content": "x"}]}, "not 3 turns"),
        ({"messages": [{"role": "system", "content": "x"}]}, "not 0 turns"),
        ({"messages": [{"role": "assistant", "content": "x"}] * 2}, "turn 1 must be from 'user'"),
    ],
)
def test_what_a_sharegpt_sample_cannot_hold_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.json", [SHAREGPT | changes])
    with pytest.raises(ValueError, match=rf"^{path}: record 1: .*{message}"):
        read_sharegpt(path)


def test_several_media_stand_where_the_question_marks_them(tmp_path: Path) -> None:
    """Each mark means the next medium of its kind; without any, they come as they are listed."""
    content = "Before: <image> After: <video> Now: <image> What changed?\nA. <image> is wet\nB. nothing"
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "B"}]
    record = {"messages": turns, "videos": ["a.mp4"], "images": ["0.jpg", "1.jpg", "2.jpg"]}
    [sample] = read_sharegpt(write_json(tmp_path / "train.json", [record]))
    names = [os.path.basename(source.path) for source in sample.media]
    assert names == ["0.jpg", "a.mp4", "1.jpg", "2.jpg"]
    assert sample.question == "Before: <image> After: <video> Now: <image> What changed?"
    assert sample.options == ("<image> is wet", "nothing") and sample.answer == "B"
    assert sample.clip_source == sample.media[1]
    plain = [{"role": "user", "content": "What changed?"}, turns[1]]
    [unmarked] = read_sharegpt(write_json(tmp_path / "train.json", [record | {"messages": plain}]))
    assert [os.path.basename(each.path) for each in unmarked.media] == ["a.mp4", "0.jpg", "1.jpg", "2.jpg"]
    wrong = [{"role": "user", "content": "<video><video><image><image>?"}, turns[1]]
    with pytest.raises(
        ValueError, match="record 1: a question marks video, video, image, image for its media"
    ):
        read_sharegpt(write_json(tmp_path / "train.json", [record | {"messages": wrong}]))
