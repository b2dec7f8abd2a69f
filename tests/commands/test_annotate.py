"""The annotator with a tiny random CLIP: the mechanics, not the quality of what it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from grpo.commands.annotate import best_spans, main, texts_of
from grpo.commands.frame_scorer import FrameScorer
from grpo.data.native import native_record
from grpo.data.readers.jsonl import read_jsonl
from grpo.groups import Sample
from rewards.builtin.keyframe import read_frame_scores
from tests.support import tiny
from tests.support.clips import with_facts
from tests.support.videos import write_video

SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,'"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, "vocab_size": len(words), "max_position_embeddings": 24,
                     "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1},
        vision_config={**size, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", num_frames=150)
    (tmp_path / "text.mp4").write_text("no video")
    common = {"question": "What is it?", "answer": "a cup", "task": "open"}
    records: list[dict[str, Any]] = [
        {**common, "id": "part", "video": "a.mp4", "start_s": 1.1, "end_s": 4.3, "note": {"by": ["me"]}},
        {**common, "id": "own", "video": "a.mp4", "keyframes_s": [[0.5, 1.0]]},
        {**common, "id": "broken", "video": "text.mp4"},
        {**common, "id": "text"},
        {
            **common,
            "id": "whole",
            "video": "a.mp4",
            "options": ["a cup", "a pan"],
            "answer": "B",
            "task": "choice",
        },
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n")
    return file


def run(data: Path, model: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    out = data.with_name("out.jsonl")
    status = main([str(data), str(out), "--model", str(model), *more])
    return status, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_key_moments_and_scores_are_added_and_the_rest_is_kept(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, records = run(data, model, "--top-k", "2")
    output = capsys.readouterr().out
    assert status == 1 and f"{data}:3: broken: {data.parent}/text.mp4: cannot be read as a video" in output
    assert "5 records: 0 were there, 2 copied, 2 annotated, 1 can't be read" in output
    assert [record["id"] for record in records] == ["part", "own", "text", "whole"]
    before = [json.loads(line) for line in data.read_text().splitlines()]
    added = {"keyframes_s", "frame_scores", "keyframes_from"}
    for record in records:
        [original] = [each for each in before if each["id"] == record["id"]]
        assert {key: record[key] for key in record if key not in added or key in original} == original
    # As a run reads them: the scores where the reward looks, the moments at the two best of the sampled times.
    samples = {sample.id: sample for sample in read_jsonl(data.with_name("out.jsonl"))}
    assert not samples["own"].columns and not samples["text"].keyframes_s
    for name, length_s in (("part", 3.2), ("whole", 5.0)):
        scores = read_frame_scores(samples[name])
        assert len(scores) == int(length_s * 2) // 2 * 2 and 0 <= min(scores) < max(scores) <= length_s
        assert len(set(scores.values())) > 1 and all(-1 <= score <= 1 for score in scores.values())
        best = sorted(scores, key=lambda time_s: -scores[time_s])[:2]
        for time_s in best:
            assert any(start - 1e-3 <= time_s <= end + 1e-3 for start, end in samples[name].keyframes_s)
    assert {record.get("keyframes_from", {}).get("top_k") for record in records} == {None, 2}


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(data: Path, model: Path) -> None:
    _, whole = run(data, model)
    out = data.with_name("out.jsonl")
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])  # killed in mid-write
    write_video(data.with_name("text.mp4"), num_frames=30)  # and repaired
    status, records = run(data, model)
    assert status == 0
    assert [record["id"] for record in records] == ["part", "own", "broken", "text", "whole"]
    assert [record for record in records if record["id"] != "broken"] == whole
    with pytest.raises(SystemExit):
        main([str(data)])
    assert main([str(data), str(out), "--model", str(model), "--fps", "1"]) == 1  # other settings: refused


def test_a_score_is_the_mean_cosine_with_question_and_answer(model: Path) -> None:
    scorer, clip = FrameScorer(str(model), "cpu"), tiny.clip(4)
    together = scorer.scores(clip, ["a cup", "a pan"])
    apart = [scorer.scores(clip, [text]) for text in ("a cup", "a pan")]
    assert [time_s for time_s, _ in together] == list(clip.times_s)
    for index, (_, score) in enumerate(together):
        assert score == pytest.approx(np.mean([scores[index][1] for scores in apart]), abs=1e-5)
    assert apart[0] != apart[1]
    repeated = with_facts(clip, times_s=(0.0, 0.5, 1.0, 1.0))
    assert [time_s for time_s, _ in scorer.scores(repeated, ["a cup"])] == [0.0, 0.5, 1.0]


def test_the_answer_is_shown_in_words_or_not_at_all() -> None:
    assert texts_of(tiny.sample(question="Q?")) == ["Q?", "red"]
    assert texts_of(tiny.sample(question="Q?", options=(), answer="a pan", task="open")) == ["Q?", "a pan"]
    assert texts_of(tiny.sample(question="Q?", options=(), answer="3", task="number")) == ["Q?"]


def test_the_best_frames_become_moments_and_neighbours_one_span() -> None:
    scores = [(0.0, 0.1), (0.5, 0.9), (1.0, 0.8), (1.5, 0.2), (2.0, 0.8)]
    assert best_spans(scores, 1) == [(0.5, 0.5)]
    assert best_spans(scores, 2) == [(0.5, 1.0)]  # at a tie the earlier one
    assert best_spans(scores, 3) == [(0.5, 1.0), (2.0, 2.0)]
    assert best_spans(scores, 9) == [(0.0, 2.0)]


RECORDS: list[dict[str, Any]] = [
    {"id": "1", "video": "x/a.mp4", "start_s": 12.1, "end_s": 18.3, "task": "span", "answer": "12.7-18.3",
     "keyframes_s": [[12.1, 18.3], 13.7]},
    {"id": "2", "frames": "folder", "frame_fps": 2, "task": "number", "answer": 4, "mine": [1]},
    {"id": "3", "frames": ["b.png", "a.png"], "frame_times_s": [3.5, 4.25], "task": "open", "answer": "x",
     "keyframes_s": [4.25]},
    {"id": "4", "image": "a.png", "task": "choice", "answer": "B", "options": ["x", "y"]},
    {"id": "5", "task": "text", "answer": "x"},
    {"id": "6", "media": [{"image": "a.png"}, {"video": "a.mp4", "start_s": 1.5, "end_s": 3.0},
     {"frames": ["b.png"], "frame_fps": 2.0, "keyframes_s": [[0.25, 0.5]]}, {"video": "a.mp4", "frame_s": 3.0}],
     "keyframes_s": [2.0], "task": "open", "answer": "x"},
    {"id": "7", "video": "a.mp4", "frame_s": 0.5, "task": "open", "answer": "x"},
]  # fmt: skip


def test_a_native_record_reads_as_the_sample_that_it_was_written_from(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    def read(records: list[dict[str, Any]]) -> list[Sample]:
        file = tmp_path / "data.jsonl"
        file.write_text("\n".join(json.dumps({"question": "?", **record}) for record in records))
        return read_jsonl(file)

    samples = read(RECORDS)
    again = read([native_record(sample, tmp_path) for sample in samples])
    for sample, other in zip(samples, again, strict=True):
        assert np.allclose(sample.keyframes_s, other.keyframes_s, atol=1e-5)
        assert replace(other, keyframes_s=sample.keyframes_s) == sample
    foreign = replace(samples[4], columns={"id": 7, "mine": 1})
    assert native_record(foreign, tmp_path)["original_id"] == 7
