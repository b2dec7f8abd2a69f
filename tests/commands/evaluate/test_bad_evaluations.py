"""What can be wrong with an evaluation, each told in one line that names it, or counted apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.benchmarks.benchmark import Benchmark, Judging, ScoredAnswer, StoredAnswer
from grpo.benchmarks.figures import figures_of
from grpo.benchmarks.scoring import score_answers
from tests.commands.evaluate.test_evaluate import evaluate, lines
from tests.support import tiny
from tests.support.judge_server import Answer, JudgeServer, Request, knobs, says

JUDGED = Benchmark(name="judged", reader="jsonl", judge=Judging(prompt="openeqa"))


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from grpo.demo.clips import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=0, num_heldout=4, seed=3)
    return folder / "heldout.jsonl"


@pytest.fixture
def damaged(tmp_path: Path, heldout: Path) -> Path:
    """A copy of the questions of which one has no video and one speaks of the model's own token."""
    shutil.copytree(heldout.parent, tmp_path / "clips", ignore=shutil.ignore_patterns("cache"))
    file = tmp_path / "clips" / "heldout.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    (file.parent / records[0]["video"]).unlink()
    records[1]["question"] = "What does <|video_pad|> mean?"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def refused(out: Path, data: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said instead of a score."""
    assert not evaluate(out, data, *more, status=1)
    return capsys.readouterr().err


def test_missing_videos_are_named_and_there_is_no_score(tmp_path: Path, damaged: Path, capsys: Any):
    said = refused(tmp_path / "out", damaged, capsys=capsys)
    assert "1 of 4 questions have no video, so there is no score" in said
    assert "no such video file" in said and "allow_missing=true" in said and not (tmp_path / "out").exists()


def test_what_can_not_be_asked_has_failed_and_counts(tmp_path: Path, damaged: Path, capsys: Any):
    results = evaluate(tmp_path / "out", damaged, "allow_missing=true")
    figures = results["models"]["base"]
    assert results["num_missing"] == 1 and figures["num_questions"] == 3
    assert figures["outcomes"]["failed"] == 1 and figures["score"] <= 2 / 3
    said = capsys.readouterr().out
    assert "n = 3 questions about 3 videos, 1 without a video are left out" in said
    (failed,) = (answer for answer in lines(tmp_path / "out") if answer["finish"] == "failed")
    assert "<|video_pad|>, which stands for a clip" in failed["text"]
    # It is asked again, and nothing else is.
    evaluate(tmp_path / "out", damaged, "allow_missing=true")
    assert len(lines(tmp_path / "out")) == 4


def test_what_is_not_answered_yet_is_not_taken_for_missing(tmp_path: Path, damaged: Path, capsys: Any):
    out = tmp_path / "out"
    evaluate(out, damaged, "allow_missing=true", "--shard", "0/2")
    said = refused(out, damaged, "allow_missing=true", "--score-only", capsys=capsys)
    assert "answers are not there yet" in said
    evaluate(out, damaged, "allow_missing=true", "--shard", "1/2")
    results = evaluate(out, damaged, "allow_missing=true", "--score-only")
    assert results["num_missing"] == 1 and results["models"]["base"]["num_questions"] == 3
    (out / "results.json").unlink()
    said = refused(out, damaged, "--score-only", capsys=capsys)
    assert "1 of 4 answers are not there yet" in said


def test_a_model_of_an_unknown_family_is_told_the_known_ones(tmp_path: Path, heldout: Path, capsys: Any):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    said = refused(tmp_path / "out", heldout, f"model.path={model}", capsys=capsys)
    assert "is a 'llama' model; supported: qwen2_vl, qwen2_5_vl, qwen3_vl" in said


def test_a_checkpoint_without_its_processor_is_refused(tmp_path: Path, heldout: Path, capsys: Any):
    model = tmp_path / "model"
    shutil.copytree(tiny.BASE_POLICY, model)
    for file in model.glob("*processor*"):
        file.unlink()
    said = refused(tmp_path / "out", heldout, f"model.path={model}", capsys=capsys)
    assert "the model has no processor" in said and str(model) in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["benchmark=egoshema"], "unknown benchmark 'egoshema' (did you mean 'egoschema'?)"),
        (["benchmark=openeqa"], "judge: openeqa is marked by a judge: set judge.base_url and judge.model"),
        (
            ["benchmark=egoplan", "prompt=official"],
            "likeliest: the official prompt of egoplan shows no options",
        ),
        (["likeliest=true"], "jsonl has no candidates"),
        (["rollout.num_samples=2"], "rollout.num_samples: greedy answers are all alike"),
        (["models.base=other"], "models: two are called 'base': "),
        (["models.trained=/nope"], "models.trained: no model folder with a config.json at /nope"),
        (
            [str(tiny.ROOT / "configs/demo.yaml")],
            "demo.yaml is a training run's; configs/eval/ has evaluations",
        ),
        (["models={'a/b': x}"], "'a/b' is no name for a folder"),
        (["media.max_frame=3"], "max_frame"),
        (["think.tags=[thonk]"], "think.tags: no tag 'thonk'"),
        (
            ["data.path=nowhere.jsonl"],
            "data.path: nowhere.jsonl: no such dataset file; docs/benchmarks.md says where",
        ),
        (["--score-only"], "no answers of base"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, heldout: Path, capsys: Any, settings: list[str], says: str
):
    said = refused(tmp_path / "out", heldout, *settings, capsys=capsys)
    assert says in said and said.count("\n") == 1


def judged(
    server: JudgeServer,
    texts: Sequence[str] = ("a cat", ""),
    cache: Path | None = None,
    timeout_s: float = 30.0,
) -> list[ScoredAnswer]:
    samples = [tiny.sample(f"s{i}", task="open", answer="a cat", options=()) for i in range(len(texts))]
    answers = {
        (sample.id, "", 0): StoredAnswer(sample_id=sample.id, index=0, text=text, finish="stop")
        for sample, text in zip(samples, texts, strict=True)
    }
    settings = knobs(server.base_url, request_timeout_s=timeout_s, cache=str(cache) if cache else None)
    return score_answers(JUDGED, [(sample, "") for sample in samples], answers, judge=settings)


@pytest.mark.parametrize(
    ("what", "answer", "num_requests"),
    [
        # What may pass is tried again, as often as `retries` says.
        ("down", Answer(body="", hang_up=True), 3),
        ("slow", Answer(body="", delay_s=0.7), 3),
        ("overloaded", Answer(body="{}", status=500), 3),
        ("refusing", Answer(body="{}", status=401), 1),
        # A reply without a mark is asked for once more.
        ("talking", says("I would say four, or five."), 2),
        ("refusing to judge", says("I can't help with that."), 2),
    ],
)
def test_a_judge_that_gives_no_mark_leaves_the_answer_unjudged(what: str, answer: Answer, num_requests: int):
    with JudgeServer(lambda request, number: answer) as server:
        scored = judged(server, timeout_s=0.5 if what == "slow" else 30.0)
    assert len(server.requests) == num_requests, what
    figures = figures_of(JUDGED, scored)
    assert figures["outcomes"] == {"unparsed": 1, "unjudged": 1}
    assert (figures["score"], figures["num_questions"], figures["num_official"]) == (0.0, 2, 0)


def test_marks_are_kept_by_the_answers_text(tmp_path: Path):
    asked: list[str] = []

    def mark(request: Request, number: int) -> Answer:
        asked.append(request.prompt)
        return says("3")

    with JudgeServer(mark) as server:
        first = judged(server, ["a cat", "a dog"], tmp_path / "judge.sqlite")
        assert [each.verdict and each.verdict.score for each in first] == [0.5, 0.5]  # (3 - 1) / 4
        assert {each.verdict.outcome for each in first if each.verdict} == {"partial"}
        assert len(asked) == 2
        judged(server, ["a cat", "a dog"], tmp_path / "judge.sqlite")
        assert len(asked) == 2
        judged(server, ["a cat", "a horse"], tmp_path / "judge.sqlite")
        assert len(asked) == 3 and "a horse" in asked[-1]
