"""The native reader: what it translates, and what it refuses with file and line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grpo.data import READERS, check_media, load_samples
from grpo.data.errors import BadRecords
from grpo.data.readers.jsonl import read_jsonl
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError
from rewards.builtin.accuracy import accuracy
from rewards.builtin.temporal import temporal_iou
from rewards.hostile import make_group
from tests.support.clips import video_of
from tests.support.videos import write_video

CHOICE: dict[str, Any] = {
    "id": "k-0017",
    "video": "clips/k-0017.mp4",
    "start_s": 12.0,
    "end_s": 42.0,
    "question": "What did I pick up?",
    "options": ["a cup", "a knife", "a plate", "a phone"],
    "answer": "B",
    "task": "choice",
    "keyframes_s": [[18.0, 19.5], 30],
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    path: str
    reader: str = "jsonl"
    media_root: str | None = None
    frame_fps: float | None = None
    follow_links: bool = False


def write(folder: Path, *lines: str | bytes | dict[str, Any], name: str = "train.jsonl") -> Path:
    def as_bytes(line: str | bytes | dict[str, Any]) -> bytes:
        text = json.dumps(line) if isinstance(line, dict) else line
        return text.encode() if isinstance(text, str) else text

    path = folder / name
    path.write_bytes(b"".join(as_bytes(line) + b"\n" for line in lines))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    return {**CHOICE, **changes}


def frames(listed: object, **changes: Any) -> dict[str, Any]:
    """A record of frames in place of a video."""
    return {**without("video", "start_s", "end_s", "keyframes_s"), "frames": listed, **changes}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in CHOICE.items() if key not in keys}


def test_a_record_is_translated_with_times_on_the_clips_clock(tmp_path: Path) -> None:
    path = write(tmp_path, changed(scene="kitchen", difficulty={"level": 3}))
    assert read_jsonl(path) == [
        Sample(
            id="k-0017",
            question="What did I pick up?",
            answer="B",
            task="choice",
            source=f"{path}:1",
            options=("a cup", "a knife", "a plate", "a phone"),
            clip_source=ClipSource(
                video=str(tmp_path / "clips/k-0017.mp4"),
                start_s=12.0,
                end_s=42.0,
            ),
            keyframes_s=((6.0, 7.5), (18.0, 18.0)),
            columns={"scene": "kitchen", "difficulty": {"level": 3}},
        )
    ]


def test_what_is_optional_has_plain_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "t", "question": "2 + 2?", "answer": "four", "task": "text"})
    [sample] = read_jsonl(path)
    assert sample.clip_source is None
    assert (sample.options, sample.keyframes_s, dict(sample.columns)) == ((), (), {})


def test_null_means_absent(tmp_path: Path) -> None:
    record = changed(start_s=None, end_s=None, keyframes_s=None)
    [sample] = read_jsonl(write(tmp_path, record))
    assert sample.clip_source == ClipSource(video=str(tmp_path / "clips/k-0017.mp4"))
    assert sample.keyframes_s == ()


def test_media_paths_start_from_the_media_root(tmp_path: Path) -> None:
    path = write(tmp_path, CHOICE)
    [sample] = read_jsonl(path, media_root="/somewhere")
    assert video_of(sample) == "/somewhere/clips/k-0017.mp4"
    [sample] = read_jsonl(write(tmp_path, changed(video="/somewhere/a/../x.mp4")), media_root="/somewhere")
    assert video_of(sample) == "/somewhere/x.mp4"
    [sample] = read_jsonl(write(tmp_path, changed(video="/else/x.mp4")), media_root="/")
    assert video_of(sample) == "/else/x.mp4"


def test_a_number_may_be_written_as_one(tmp_path: Path) -> None:
    record = {"id": "n", "question": "How many?", "answer": 3, "task": "number"}
    assert read_jsonl(write(tmp_path, record))[0].answer == "3"
    record = {"id": "n", "question": "How far?", "answer": 2.5, "task": "regression"}
    assert read_jsonl(write(tmp_path, record))[0].answer == "2.5"


@pytest.mark.parametrize(
    ("written", "answer"),
    [("0.00005", "0.00005"), ("5e-05", "0.00005"), ("1e16", "10000000000000000"), ("-2.50", "-2.5")]
    + [("1e22", f"1{'0' * 22}"), ("0.1", "0.1"), ("42.0", "42.0"), ("-3", "-3")]
    + [("1e300", "1e+300"), ("5e-324", "5e-324")],
)  # fmt: skip
def test_a_number_as_an_answer_is_written_out(written: str, answer: str, tmp_path: Path) -> None:
    for task in ("number", "regression"):
        line = f'{{"id": "n", "question": "How much?", "answer": {written}, "task": "{task}"}}'
        [sample] = read_jsonl(write(tmp_path, line))
        assert sample.answer == answer
        [rollout] = make_group([f"<answer>{answer}</answer>"], sample).rollouts
        assert accuracy(rollout) == 1


@pytest.mark.parametrize(
    ("given", "answer"),
    [("18.0-19.5", "6.0-7.5"), ("(18, 19.5)", "6.0-7.5"), ("12 - 42", "0.0-30.0"), ("18.1-18.3", "6.1-6.3")],
)
def test_an_answer_in_time_is_on_the_clips_clock_as_key_moments_are(
    given: str, answer: str, tmp_path: Path
) -> None:
    span = {**without("options"), "task": "span", "answer": given}
    [sample] = read_jsonl(write(tmp_path, span))
    assert sample.answer == answer
    right, other = make_group([f"<answer>{answer}</answer>", "<answer>29-30</answer>"], sample).rollouts
    assert temporal_iou(right) == 1.0 and (temporal_iou(other) or 0) < 0.1
    # Without a clip there is one clock.
    text_only = {"id": "t", "question": "When?", "task": "span", "answer": "18.0-19.5"}
    assert read_jsonl(write(tmp_path, text_only))[0].answer == "18.0-19.5"


def test_line_numbers_count_empty_lines_and_nothing_else(tmp_path: Path) -> None:
    # U+2028 ends a line for Python's splitlines, and not for JSON Lines.
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(CHOICE).encode() + b"\r", b"", b"  ",
                 json.dumps(changed(id="b", question="one\u2028two"), ensure_ascii=False))  # fmt: skip
    first, second = read_jsonl(path)
    assert (first.source, second.source) == (f"{path}:1", f"{path}:4")
    assert second.question == "one\u2028two"


REFUSED: list[tuple[str | bytes | dict[str, Any], str]] = [
    ("{", "not readable as JSON"),
    ("not json", "not readable as JSON"),
    ('{"id": "x"} trailing', "not readable as JSON"),
    (b'{"id": "\xff"}', "not UTF-8 at byte 8"),
    ("[" * 100_000, "not readable as JSON"),
    ('{"start_s": NaN}', "NaN is no JSON number"),
    ('{"start_s": -Infinity}', "-Infinity is no JSON number"),
    ('{"start_s": ' + "9" * 5000 + "}", "4300 digits"),
    ('{"answer": "A", "answer": "B"}', "the key 'answer' is there twice"),
    ("[1, 2]", "a record is a JSON object, not [1, 2]"),
    ("null", "a record is a JSON object, not None"),
    (without("id"), "'id' is missing"),
    (changed(id=7), "'id' must be a text"),
    (changed(id=" "), "'id' must be a text that is not empty"),
    (without("question"), "'question' is missing"),
    (changed(question=""), "'question' must be a text that is not empty"),
    (changed(question="half a \ud83d"), "'question' is not valid Unicode"),
    (without("answer"), "'answer' is missing"),
    (changed(answer=1), "'answer' must be a text"),
    (changed(answer="E"), "answer 'E' is not one of the options A to D"),
    (changed(answer="b"), "answer 'b' is not one of the options A to D"),
    (changed(answer="AB"), "answer 'AB' is not one of the options A to D"),
    (changed(answer="a knife"), "answer 'a knife' is not one of the options A to D"),
    (without("task"), "'task' is missing"),
    (changed(task="chioce"), "unknown task 'chioce'; there are choice, number"),
    (changed(task="text"), "'options' belong to the task 'choice', not 'text'"),
    (without("options"), "'options' must be a list of 2 to 26 texts, not None"),
    (changed(options=["a cup"]), "'options' must be a list of 2 to 26"),
    (changed(options="abcd"), "'options' must be a list of 2 to 26"),
    (changed(options=[str(i) for i in range(27)]), "'options' must be a list of 2 to 26"),
    (changed(options=["a", 2]), "'options' must be a text that is not empty, not 2"),
    (changed(options=["a", ""]), "'options' must be a text that is not empty"),
    (changed(options=["a cup", "a knife", "a cup "]), "option 'a cup' is there twice"),
    (changed(video=5), "'video' must be a text"),
    (changed(video=""), "'video' must be a text that is not empty"),
    (changed(start_s="12"), "'start_s' must be in seconds"),
    (changed(start_s=True), "'start_s' must be in seconds"),
    (changed(start_s=-1), "'start_s' must be in seconds, 0 or more, not -1"),
    ('{"id": "x", "question": "?", "answer": "!", "task": "text", "video": "v", "start_s": 1e999}',
     "not readable as JSON: '1e999' is too large a number"),
    (changed(end_s=10**400), "'end_s' is too large"),
    (changed(end_s=12.0), "'end_s' (12) must lie behind 'start_s' (12)"),
    (changed(end_s=3), "'end_s' (3) must lie behind 'start_s' (12)"),
    (changed(keyframes_s=18.0), "'keyframes_s' must be a list of moments or spans"),
    (changed(keyframes_s=[[18.0]]), "a span is [start, end], not [18.0]"),
    (changed(keyframes_s=[[18.0, 19.0, 20.0]]), "a span is [start, end]"),
    (changed(keyframes_s=["18"]), "'keyframes_s' must be in seconds"),
    (changed(keyframes_s=[[19.5, 18.0]]), "[19.5, 18.0] ends before it starts"),
    (changed(keyframes_s=[[11.0, 13.0]]), "11 to 13 s lies outside the clip, 12 s to 42 s"),
    (changed(keyframes_s=[43]), "43 to 43 s lies outside the clip, 12 s to 42 s"),
    ({**changed(keyframes_s=[3]), "end_s": None}, "lies outside the clip, 12 s to the file's end"),
    (without("video"), "'start_s' without a 'video'"),
    (without("video", "start_s", "end_s"), "'keyframes_s' without a 'video'"),
    ({**without("options"), "task": "span", "answer": "soon"}, "'answer' must be a span in seconds, such as"),
    ({**without("options"), "task": "span", "answer": "18.0"}, "'answer' must be a span in seconds, such as"),
    ({**without("options"), "task": "span", "answer": "18-18.0001"}, "'answer' must be a span in seconds"),
    ({**without("options"), "task": "span", "answer": "6.0-7.5"}, "'answer': 6 to 7.5 s lies outside the clip"),
    ({**without("options"), "task": "span", "answer": "40-43"}, "'answer': 40 to 43 s lies outside the clip"),
    (changed(frames=["a.png"]), "'video' and 'frames': a question about several has a list of them, 'media'"),
    (changed(frame_fps=2), "'frame_fps' without 'frames'"),
    ({**without("video"), "images": ["a.png", "b.png"]}, "several 'images': those of one clip are its 'frames'"),
    (frames([]), "'frames' must be a list of images, not []"),
    (frames(["a.png", 3]), "'frames' must be a text that is not empty, not 3"),
    (frames(["../a.png"]), "'../a.png' leads out of the media root"),
    (frames(["a.png"], frame_fps=0), "'frame_fps' must be above 0"),
    (frames(["a.png"], frame_fps=1, frame_times_s=[0]), "'frame_fps' and 'frame_times_s': give one of them"),
    (frames(["a.png"], frame_times_s=[]), "'frame_times_s' must be a list of times, not []"),
    (frames(["a.png"], frame_times_s=[0, 1]), "'frame_times_s': 2 times for 1 frames"),
    (frames(["a.png", "b.png"], frame_times_s=[1, 1]), "'frame_times_s' must ascend: [1, 1]"),
    (frames(["a.png"], frame_times_s=["0"]), "'frame_times_s' must be in seconds, 0 or more, not '0'"),
    ('{"frames": ["a.png"], "frame_times_s": [NaN]}', "not readable as JSON: NaN is no JSON number"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_record_that_is_not_right_is_refused_with_file_and_line(
    line: str | bytes | dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, changed(id="fine"), line)
    with pytest.raises(ValueError) as caught:
        read_jsonl(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:2: ") and message in said
    assert "\n" not in said and len(said) < len(str(path)) + 250


def test_an_id_that_is_used_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CHOICE, changed(question="Another?"))
    with pytest.raises(ValueError, match=r"train.jsonl:2: id 'k-0017' was already used in .*train.jsonl:1"):
        read_jsonl(path)


def test_a_file_without_records_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.jsonl: the file is empty"):
        read_jsonl(write(tmp_path, "", " "))
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl: no such dataset file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_datasets_are_read_one_after_another(tmp_path: Path) -> None:
    one = write(tmp_path, CHOICE, name="one.jsonl")
    two = write(tmp_path, changed(id="b"), changed(id="c"), name="two.jsonl")
    samples = load_samples([Entry(path=str(two)), Entry(path=str(one), media_root="/m")])
    assert [sample.id for sample in samples] == ["b", "c", "k-0017"]
    assert video_of(samples[2]) == "/m/clips/k-0017.mp4"


def test_an_id_names_one_sample_among_all_datasets(tmp_path: Path) -> None:
    one, two = write(tmp_path, CHOICE, name="one.jsonl"), write(tmp_path, CHOICE, name="two.jsonl")
    with pytest.raises(ValueError, match=r"two.jsonl:1: id 'k-0017' was already used in .*one.jsonl:1"):
        load_samples([Entry(path=str(one)), Entry(path=str(two))])


def test_an_unknown_reader_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown reader 'json': did you mean 'jsonl'"):
        load_samples([Entry(path="x", reader="json")])
    with pytest.raises(ValueError, match="unknown reader 'zzz': there are jsonl"):
        load_samples([Entry(path="x", reader="zzz")])
    assert READERS["jsonl"] is read_jsonl


def video_samples(folder: Path, *videos: str) -> list[Sample]:
    records = [
        {"id": str(i), "question": "?", "answer": "!", "task": "text", "video": video}
        for i, video in enumerate(videos)
    ]
    return read_jsonl(write(folder, *records))


def test_good_media_pass_the_check(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=10)
    check_media(video_samples(tmp_path, "a.mp4", "a.mp4"), num_probes=8)
    check_media([], num_probes=8)
    text_only = {"id": "t", "question": "?", "answer": "!", "task": "text"}
    check_media(read_jsonl(write(tmp_path, text_only)), num_probes=8)


def test_missing_files_are_one_error_that_names_the_first(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=10)
    samples = video_samples(tmp_path, "a.mp4", "b.mp4", "b.mp4", "c.mp4", "d.mp4")
    with pytest.raises(FileNotFoundError) as caught:
        check_media(samples, num_probes=0)
    message = f"{samples[1].source}: sample {samples[1].id}: no such video file: {tmp_path}/b.mp4 "
    assert str(caught.value) == message + "(2 more clips lack files; egogrpo doctor names all)"
    with pytest.raises(FileNotFoundError, match=r"b.mp4$"):
        check_media(samples[:3], num_probes=0)


def test_a_file_that_is_no_video_is_found_before_training(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=10)
    (tmp_path / "text.mp4").write_text("no video")
    samples = video_samples(tmp_path, "a.mp4", "text.mp4")
    with pytest.raises(MediaError, match=r"train.jsonl:2: .*text.mp4: cannot be read as a video"):
        check_media(samples, num_probes=2)
    check_media(samples, num_probes=1)  # looks at the first alone


def test_a_start_behind_the_end_is_found_before_training(tmp_path: Path) -> None:
    write_video(tmp_path / "k.mp4", num_frames=30)
    [sample] = read_jsonl(write(tmp_path, changed(video="k.mp4")))
    with pytest.raises(MediaError, match=r"train.jsonl:1: .*starts at 12 s, but the video ends at 1 s"):
        check_media([sample], num_probes=1)


def test_probes_are_spread_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []
    monkeypatch.setattr("grpo.media.reading.probe", lambda source: probed.append(Path(source.video).stem))
    names = [f"{i}.mp4" for i in range(9)]
    for name in names:
        (tmp_path / name).touch()
    check_media(video_samples(tmp_path, *names), num_probes=3)
    assert probed == ["0", "4", "8"]


def test_all_bad_records_are_found_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [changed(id="a"), b"{torn", changed(id="b", answer="Z"), changed(id="a"), changed(id="c")]
    with pytest.raises(BadRecords) as caught:
        read_jsonl(write(tmp_path, *lines))
    assert [problem.source[-2:] for problem in caught.value.problems] == [":2", ":3", ":4"]
    assert [sample.id for sample in caught.value.samples] == ["a", "c"]
    assert "train.jsonl:2: not readable as JSON" in str(caught.value)
    assert str(caught.value).endswith("(2 more bad records in the file; egogrpo doctor names all)")


def test_behind_a_break_in_a_json_list_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(f"[{json.dumps(changed(answer='Z'))}, {{torn, {{}}]")
    with pytest.raises(BadRecords) as caught:
        READERS["huggingface"](str(tmp_path / "train.json"), None)
    first, second = caught.value.problems
    assert first.source.endswith("train.json: record 1") and second.source.endswith("train.json: record 2")
    assert second.reason.startswith("not readable")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"video": "a\0b.mp4"}, r"'a\\x00b.mp4' can't be a path: it has a null character"),
        ({"options": None, "task": "number", "answer": "a few"}, "'answer' must be a number .* not 'a few'"),
        ({"options": None, "task": "regression", "answer": "nan"}, "'answer' must be a number .* not 'nan'"),
    ],
)
def test_null_characters_and_numbers_in_words_are_bad_records(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BadRecords, match=f"train.jsonl:1: {reason}"):
        read_jsonl(write(tmp_path, changed(**fields)))


@pytest.mark.parametrize("answer", ["1,000", "-3", "12%", r"\pi"])
def test_numbers_may_be_written_as_rewards_read_them(answer: str, tmp_path: Path) -> None:
    [sample] = read_jsonl(write(tmp_path, changed(options=None, task="number", answer=answer)))
    assert sample.answer == answer
