"""Answers files: what was torn, damaged, of other questions, or is being written by another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo.benchmarks.answers import (
    AnswerWriter,
    answers_folder,
    check_answers,
    key_of,
    questions_digest,
    read_answers,
    stored,
    unanswered,
)
from grpo.benchmarks.benchmark import StoredAnswer
from grpo.media.clip import ClipSource
from tests.support.tiny import media_prompt, rollout, sample


def answer(of: str, text: str = "A", **fields: object) -> StoredAnswer:
    known = {"index": 0, "finish": "stop", "times_s": (0.0, 0.5), **fields}
    return StoredAnswer(sample_id=of, text=text, **known)  # pyright: ignore[reportArgumentType]


def write(folder: Path, *answers: StoredAnswer, rank: int = 0) -> None:
    with AnswerWriter(folder, {}, rank) as writer:
        for each in answers:
            writer.write(each)


def test_an_answer_is_read_as_it_was_written(tmp_path: Path):
    text = 'a "quoted"\nline\u2028 \ud800'
    write(tmp_path, answer("a", text, losses=(0.5, 1.5)), answer("b"))
    assert [*read_answers(tmp_path).values()] == [answer("a", text, losses=(0.5, 1.5)), answer("b")]


def test_the_times_of_all_media_are_stored(tmp_path: Path):
    """The first video's, and those of the picture before it and of the second video."""
    prompt = media_prompt(("image", "video", "video"))
    answer = stored(prompt, rollout(prompt, [1]), 0)
    image, first, second = prompt.media
    assert answer.times_s == first.times_s and answer.other_times_s == (image.times_s, second.times_s)
    write(tmp_path, answer)
    assert [*read_answers(tmp_path).values()] == [answer]


def test_a_torn_last_line_is_mended(tmp_path: Path):
    write(tmp_path, answer("a"), answer("b"))
    part = tmp_path / "part-0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    assert [key[0] for key in read_answers(tmp_path)] == ["a"]
    write(tmp_path, answer("c"))
    assert [key[0] for key in read_answers(tmp_path)] == ["a", "c"]
    assert part.read_bytes().count(b"\n") == 2


def test_a_damaged_line_is_named(tmp_path: Path):
    write(tmp_path, answer("a"))
    part = tmp_path / "part-0.jsonl"
    part.write_text('{"sample_id": 3}\n' + part.read_text())
    with pytest.raises(ValueError, match=r"part-0\.jsonl:1 is damaged"):
        read_answers(tmp_path)


def test_the_latest_answer_counts_unless_it_failed(tmp_path: Path):
    write(tmp_path, answer("a", "no file", finish="failed"), answer("b"))
    write(tmp_path, answer("a"), answer("b", "no file", finish="failed"), rank=1)
    assert [each.text for each in read_answers(tmp_path).values()] == ["A", "A"]


def test_two_processes_do_not_write_one_file(tmp_path: Path):
    with (
        AnswerWriter(tmp_path, {}),
        pytest.raises(ValueError, match=r"another process is writing .*part-0"),
    ):
        AnswerWriter(tmp_path, {})


def test_other_settings_have_another_folder(tmp_path: Path):
    assert answers_folder(tmp_path, "m", {"fps": 1}) != answers_folder(tmp_path, "m", {"fps": 2})
    assert answers_folder(tmp_path, "m", {"a": 1, "b": 2}) == answers_folder(tmp_path, "m", {"b": 2, "a": 1})


def test_what_is_asked_is_told_apart_and_what_is_right_is_not():
    assert questions_digest([sample("a")]) != questions_digest([sample("a", options=("red", "blue"))])
    assert questions_digest([sample("a")]) == questions_digest([sample("a", answer="C")])


def test_what_is_shown_is_told_apart_and_where_its_folder_lies_is_not():
    def shown(root: str = "data", **fields: Any) -> str:
        source = ClipSource(**{"video": f"{root}/a.mp4", **fields})
        return questions_digest([sample("a", clip_source=source)], root)

    others = [
        shown(end_s=8.0),
        shown(start_s=1.0),
        shown(video="data/b.mp4"),
        shown(video=None, frames=("data/a", "data/b"), frame_fps=1.0),
        shown(video=None, frames=("data/a", "data/b"), frame_fps=2.0),
        shown(video=None, frames=("data/a", "data/b"), frame_times_s=(0.0, 3.0)),
    ]
    assert len({shown(), *others}) == 7
    assert shown() == shown("elsewhere")


def test_answers_to_other_questions_are_counted_and_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"2 of its answers are to other questions .*: x, y"):
        check_answers([answer("a"), answer("x"), answer("y")], [sample("a")], tmp_path)


def test_a_question_that_lacks_any_of_its_answers_is_asked():
    asked = [(sample("a"), ""), (sample("b"), ""), (sample("c"), "")]
    given = [answer("a", index=1), answer("b"), answer("b", index=1), answer("c", finish="failed")]
    known = {key_of(each): each for each in [*given, answer("c", index=1)]}
    assert [of.id for of, _ in unanswered(asked, known, num_samples=2)] == ["a", "c"]
