"""Held-out questions that training would give away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from grpo.data import check_overlap, namesakes
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support import tiny
from tests.support.clips import source_of
from tests.support.runs import data, reset_process_state, run


def about(name: str, video: str | None, start_s: float = 0.0, end_s: float | None = None) -> Sample:
    source = ClipSource(video=video, start_s=start_s, end_s=end_s) if video else None
    return tiny.sample(name, clip_source=source)


def asking(sample: Sample, question: str) -> Sample:
    return replace(sample, question=question)


def refusal(train: Sample, held_out: Sample, allowed: str = "nothing") -> str | None:
    try:
        check_overlap([about("unrelated", "u.mp4"), train], {"heldout": [held_out]}, allowed=allowed)  # pyright: ignore
    except ValueError as error:
        return str(error)
    return None


def test_a_clip_of_training_is_refused_with_both_places(tmp_path: Path) -> None:
    message = refusal(about("t", "a.mp4", 0, 10), asking(about("h", "a.mp4", 9.5, 20), "Why?"))
    assert message == (
        "made-up:h: held-out sample h shows the same as training sample t (made-up:t); 1 of 1 samples of 'heldout' "
        "have such a twin, 0 with the same question. Take them out, or set data.allow_overlap=clips"
    )


def test_a_link_to_the_same_file_is_the_same_clip(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    one, other = about("t", f"{tmp_path}/b.mp4"), about("h", f"{tmp_path}/x/../a.mp4")
    assert refusal(one, asking(other, "Why?")) is not None


def test_a_copy_is_the_same_clip_and_a_file_of_its_size_is_not(tmp_path: Path) -> None:
    for name, content in {"a.mp4": b"one", "copy.mp4": b"one", "other.mp4": b"two"}.items():
        (tmp_path / name).write_bytes(content * 100_000)
    train = about("t", f"{tmp_path}/a.mp4", 0, 10)
    assert refusal(train, asking(about("h", f"{tmp_path}/copy.mp4", 5), "Why?")) is not None
    assert refusal(train, asking(about("h", f"{tmp_path}/copy.mp4", 10), "Why?")) is None
    assert refusal(train, asking(about("h", f"{tmp_path}/other.mp4", 5), "Why?")) is None


def test_a_video_encoded_anew_by_another_dataset_is_noticed_by_name_question_and_answer() -> None:
    train = about("t", "egoit/P01_11.mp4")
    assert refusal(train, about("h", "epic/p01_11.mkv")) is None
    turned = replace(about("h", "epic/p01_11.mkv"), options=train.options[::-1])
    turned = replace(turned, answer=chr(ord("A") + len(train.options) - 1 - (ord(train.answer) - ord("A"))))
    assert [pair[1].id for pair in namesakes([about("u", "u.mp4"), train], [turned])] == ["t"]
    for other in (
        replace(turned, clip_source=ClipSource(video="epic/P01_12.mp4")),
        replace(turned, answer="A" if turned.answer != "A" else "B"),
        replace(turned, clip_source=train.clip_source),
        asking(turned, "Why?"),
    ):
        assert namesakes([train], [other]) == []


def test_a_stream_of_training_is_noticed_whether_or_not_a_clip_is_shown_with_it() -> None:
    blind = replace(about("t", None), streams={"sensor": "x.sensor.npz", "motion": "x.motion.npz"})
    seen = replace(about("h", "x.mp4"), streams=blind.streams)
    assert "1 with the same question" in (refusal(blind, seen) or "")
    assert "1 with the same question" in (refusal(seen, blind, "clips") or "")
    other_words = asking(seen, "Describe.")
    assert refusal(blind, other_words) is not None and refusal(blind, other_words, "clips") is None
    # Two clips with one stream show the same, whatever their files and times.
    other_clip = replace(about("t", "y.mp4", 0, 5), streams=seen.streams)
    assert refusal(other_clip, replace(seen, clip_source=ClipSource(video="x.mp4", start_s=5))) is not None
    assert refusal(blind, replace(seen, streams={"sensor": "y.sensor.npz"})) is None


def test_other_parts_of_a_file_are_other_clips() -> None:
    assert refusal(about("t", "a.mp4", 0, 10), about("h", "a.mp4", 10, 20)) is None
    assert refusal(about("t", "a.mp4", 30), about("h", "a.mp4", 10, 20)) is None
    assert refusal(about("t", "a.mp4"), about("h", "b.mp4")) is None


def test_a_picture_meets_itself_and_the_clips_that_show_it() -> None:
    picture = about("t", "a.mp4", 3, 3)
    for other in (
        about("h", "a.mp4", 3, 3),
        about("h", "a.mp4", 1, 3),
        about("h", "a.mp4", 3),
        about("h", "a.mp4"),
    ):
        assert refusal(picture, other) and refusal(picture, asking(other, "Why?")) and refusal(other, picture)
    assert refusal(picture, about("h", "a.mp4", 3, 3), "clips") is not None
    for other in (about("h", "a.mp4", 4, 4), about("h", "a.mp4", 3.5), about("h", "b.mp4", 3, 3)):
        assert refusal(picture, other) is None and refusal(other, picture) is None


def test_the_same_question_is_refused_where_clips_are_allowed() -> None:
    train, held_out = about("t", "a.mp4", 0, 10), about("h", "a.mp4", 5, 20)
    assert refusal(train, asking(held_out, "Which tool?"), "clips") is None
    reworded = replace(
        asking(held_out, "Which object does the hand take"), options=("White", "red", "green", "blue")
    )
    message = refusal(train, reworded, "clips")
    assert message is not None and "asks the same" in message and "data.allow_overlap=questions" in message
    assert refusal(train, replace(reworded, options=("up", "down")), "clips") is None
    assert refusal(train, held_out, "questions") is None


def test_questions_about_no_clip_are_compared_by_their_words() -> None:
    assert refusal(about("t", None), about("h", None)) is not None
    assert refusal(about("t", None), asking(about("h", None), "Why?")) is None
    assert refusal(about("t", "a.mp4"), about("h", None)) is None


@pytest.mark.slow
def test_questions_about_streams_are_told_apart_by_their_files() -> None:
    one, other = (
        replace(about(name, None), question="Track <sensor>", streams={"sensor": f"{name}.npz"})
        for name in ("a", "b")
    )
    assert refusal(one, other) is None
    assert "asks the same" in (refusal(one, replace(one, id="h")) or "")
    assert "shows the same" in (refusal(one, replace(one, id="h", question="Describe <sensor>")) or "")
    assert refusal(one, replace(one, id="h", question="Describe <sensor>"), allowed="clips") is None


def test_a_run_is_refused_unless_it_is_allowed(clips: Path, tmp_path: Path) -> None:
    same = data(clips)[0].replace("data.train", "data.eval")
    with pytest.raises(SystemExit, match=r"train.jsonl:1: held-out sample .* 12 of 12 samples of 'train'"):
        run(tmp_path / "run", clips, same, "num_steps=1")
    reset_process_state()
    assert run(tmp_path / "run", clips, same, "num_steps=1", "data.allow_overlap=questions")


def test_images_are_told_apart_by_their_files() -> None:
    one, other = (
        tiny.sample(name, clip_source=ClipSource(frames=(f"{name}.png", f"{name}_end.png")))
        for name in ("a", "b")
    )
    assert refusal(one, other) is None
    assert refusal(one, replace(one, id="h", question="Why?")) is not None


def test_clips_of_images_meet_where_they_share_one(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scene")

    def of(*names: str) -> Sample:
        frames = tuple(f"{tmp_path}/{name}" for name in names)
        return tiny.sample("s", clip_source=ClipSource(frames=frames, frame_fps=1.0))

    def cut(sample: Sample, **bounds_s: float) -> Sample:
        return replace(sample, clip_source=replace(source_of(sample), **bounds_s))

    first, second, later = of("scene/0.png", "scene/1.png"), of("link/1.png", "link/2.png"), of("scene/2.png")
    whole, other = of("scene"), of("1.png", "2.png")
    for one, two in ((first, second), (first, whole), (second, later), (later, whole), (whole, whole)):
        assert refusal(one, asking(two, "Why?")) and refusal(two, asking(one, "Why?"))
    for one, two in ((first, later), (first, other), (whole, other)):
        assert refusal(one, asking(two, "Why?")) is None and refusal(two, asking(one, "Why?")) is None
    for one, two in ((first, first), (whole, whole)):
        assert refusal(cut(one, end_s=1.0), cut(two, start_s=1.0)) is None
