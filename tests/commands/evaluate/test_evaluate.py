"""The whole command: the demo's policy answers held-out questions of the demo through the transformers engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.__main__ import main as egogrpo
from tests.run.kills import Moment, kill_at
from tests.support import tiny
from tests.support.launched import run_in_two
from tests.support.runs import reset_process_state
from tests.support.trainers import start

DEMO = str(tiny.ROOT / "configs" / "eval" / "demo.yaml")


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from grpo.demo.clips import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=0, num_heldout=10, seed=3)
    return folder / "heldout.jsonl"


def words(out: Path, heldout: Path, *more: str) -> list[str]:
    # Under the word `Explain.` the shipped policy says what it sees.
    own = out.parent / f"{out.name}.yaml"
    own.write_text(Path(DEMO).read_text().replace("Answer.", "Explain."))
    files = [
        f"out_dir={out}",
        f"data.path={heldout}",
        "benchmark=jsonl",
        "media.num_workers=1",
        "blind=false",
    ]
    return [
        str(own),
        *files,
        f"model.path={tiny.BASE_POLICY}",
        f"media.cache_dir={heldout.parent}/cache",
        *more,
    ]


def evaluate(out: Path, heldout: Path, *more: str, status: int = 0) -> dict[str, Any]:
    """Run the command in this process; the results that it left."""
    try:
        assert egogrpo(["evaluate", *words(out, heldout, *more)]) == status
    finally:
        reset_process_state()
    results = out / "results.json"
    return json.loads(results.read_text()) if results.exists() else {}


def lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for part in sorted(out.glob("answers/*/part-*"))
        for line in part.read_text().splitlines()
    ]


def figures_in(out: Path) -> dict[str, Any]:
    """The first model's figures."""
    return json.loads((out / "results.json").read_text())["models"]["base"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, heldout: Path) -> Path:
    """An evaluation that nobody has disturbed, of two models with black frames beside them; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "done"
    evaluate(out, heldout, f"models.again={tiny.BASE_POLICY}", "blind=true")
    return out


def test_two_models_answer_and_are_compared(done: Path):
    results = json.loads((done / "results.json").read_text())
    base, again = results["models"]["base"], results["models"]["again"]
    assert base["score"] >= 0.8 and base["num_questions"] == base["num_videos"] == 10
    assert again["score"] == base["score"] and results["differences"]["again"]["mean"] == 0.0
    assert base["blind"]["score"] < base["score"]
    assert base["moments"]["cited_frac"] == 1.0 and base["costs"]["mean_frames"] == 16
    low, high = base["score_interval"]
    assert low < base["score"] <= high
    assert results["manifest"]["settings"]["prompt"] == "think" and results["manifest"]["data"]
    text = (done / "results.md").read_text()
    assert "| base |" in text and "| again | +0.000 |" in text


def test_an_answer_says_what_was_asked_and_shown(done: Path):
    answer = lines(done)[0]
    assert answer["finish"] == "stop" and len(answer["prompt_hash"]) == 16
    assert answer["times_s"] == [index / 2 for index in range(16)] and answer["num_tokens"] > 5
    assert Path(answer["video"]).exists() and answer["text"].endswith("</answer>")


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, done: Path, heldout: Path):
    out = tmp_path / "killed"
    one_by_one = ["rollout.batch_prompts=2"]
    moment = Moment("grpo.benchmarks.answers", "AnswerWriter.write", is_after=True, call=4)
    command = ["-m", "grpo.commands", "evaluate", *words(out, heldout, *one_by_one)]
    process = start(command, tmp_path / "log", partial(kill_at, moment))
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = lines(out)
    assert len(before) == 4
    part = next(out.glob("answers/*/part-0.jsonl"))
    part.write_bytes(part.read_bytes() + b'{"sample_id": "torn')
    results = evaluate(out, heldout, *one_by_one)
    after = lines(out)
    assert after[:4] == before and len(after) == len({answer["sample_id"] for answer in after}) == 10
    whole = figures_in(done)
    assert results["models"]["base"]["score"] == whole["score"]
    assert results["models"]["base"]["moments"] == whole["moments"]


def test_a_finished_evaluation_asks_nothing(tmp_path: Path, done: Path, heldout: Path, monkeypatch: Any):
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    monkeypatch.setattr("grpo.startup.answering.load_policy", lambda *_: pytest.fail("a model is loaded"))
    evaluate(out, heldout)
    assert lines(out) == lines(done)


def test_a_process_that_is_done_starts_its_engine_with_those_that_are_not(
    tmp_path: Path, done: Path, heldout: Path, monkeypatch: Any
):
    from grpo.startup import answering

    out, started = tmp_path / "copy", []
    shutil.copytree(done, out)
    build = answering.build_engine
    monkeypatch.setattr(answering, "build_engine", lambda *of: started.append(1) or build(*of))
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, 3])
    before = [file.read_bytes() for file in sorted(out.glob("answers/*/*"))]
    evaluate(out, heldout)
    assert started and [file.read_bytes() for file in sorted(out.glob("answers/*/*"))] == before


def test_an_answer_ends_with_a_text_that_ended_completions_in_training(tmp_path: Path, heldout: Path):
    evaluate(tmp_path / "out", heldout, "max_samples=1", "rollout.stop=[</think>]")
    (answer,) = lines(tmp_path / "out")
    assert answer["text"].endswith("</think>") and answer["finish"] == "stop"


def test_scores_are_made_again_without_a_model(tmp_path: Path, done: Path, heldout: Path, capsys: Any):
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    for name in ("results.json", "results.md"):
        (out / name).unlink()
    # The model is gone, and so are the videos.
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(heldout, moved)
    gone = ["--score-only", f"data.path={moved}", "model.path=gone/base", "model.name=base"]
    results = evaluate(out, heldout, *gone)
    assert results["models"]["base"]["score"] == figures_in(done)["score"]
    evaluate(out, heldout, *gone, "media.max_frames=8", status=1)
    assert "not to be mixed with these: other media" in capsys.readouterr().err
    others = moved.read_text().replace("Which", "What")
    moved.write_text(others)
    evaluate(out, heldout, *gone, status=1)
    assert "other questions" in capsys.readouterr().err


def test_more_can_be_asked_later(tmp_path: Path, heldout: Path):
    out = tmp_path / "out"
    few = evaluate(out, heldout, "max_samples=3")
    assert few["models"]["base"]["num_questions"] == 3
    more = evaluate(out, heldout, "max_samples=5")
    assert more["models"]["base"]["num_questions"] == 5 and len(lines(out)) == 5
    fewer = evaluate(out, heldout, "max_samples=2", "--score-only")
    assert fewer["models"]["base"]["num_questions"] == 2


def test_shares_are_answered_apart_and_scored_together(
    tmp_path: Path, done: Path, heldout: Path, capsys: Any
):
    out = tmp_path / "out"
    assert not evaluate(out, heldout, "--shard", "0/2")
    evaluate(out, heldout, "--score-only", status=1)
    assert "5 of 10 answers are not there yet" in capsys.readouterr().err
    assert not evaluate(out, heldout, "--shard", "1/2")
    results = evaluate(out, heldout, "--score-only")
    assert [part.name for part in sorted(out.glob("answers/*/part-*"))] == ["part-0.jsonl", "part-1.jsonl"]
    whole = figures_in(done)
    assert results["models"]["base"]["score"] == whole["score"]


def test_several_answers_to_a_question(tmp_path: Path, heldout: Path):
    sampled = ["rollout.num_samples=4", "rollout.temperature=1.0", "max_samples=3", "rotations=true"]
    figures = evaluate(tmp_path / "out", heldout, *sampled)["models"]["base"]
    assert figures["samples"]["num_samples"] == 4 and set(figures["samples"]["pass_at_k"]) == {"1", "2", "4"}
    assert len(lines(tmp_path / "out")) == 3 * 4 * 4  # as it is, and its options in three other orders
    assert set(figures["letters"]["score_by_place"]) == {*"ABCD"}


def test_a_model_that_is_not_asked_for_tags_answers_by_itself(tmp_path: Path, heldout: Path):
    """The policy knows no other prompt than its own: what it says about another can't be read, and is not guessed."""
    figures = evaluate(
        tmp_path / "out", heldout, "prompt=direct", "max_samples=4", "rollout.max_new_tokens=2"
    )
    outcomes = figures["models"]["base"]["outcomes"]
    assert figures["prompt"]["kind"] == "direct" and sum(outcomes.values()) == 4
    assert set(outcomes) <= {"unparsed", "truncated", "right", "wrong"}


@pytest.mark.slow
def test_vllm_gives_the_same_answers(tmp_path: Path, done: Path, heldout: Path):
    """Its weights are its own, of the model's folder: the policy beside it has none."""
    results = evaluate(tmp_path / "out", heldout, "rollout.engine=vllm", "rollout.gpu_memory_frac=0.3")
    of_vllm = {answer["sample_id"]: answer["text"] for answer in lines(tmp_path / "out")}
    others = [answer for answer in lines(done) if not answer["variant"]]
    assert of_vllm == {answer["sample_id"]: answer["text"] for answer in others}
    assert results["models"]["base"]["score"] == figures_in(done)["score"]
    assert results["models"]["base"]["engine_busy_frac"] > 0


@pytest.mark.slow
def test_two_processes_answer_their_shares_and_one_scores(tmp_path: Path, done: Path, heldout: Path):
    out = tmp_path / "out"
    run_in_two(["-m", "grpo.commands", "evaluate", *words(out, heldout)], dict(os.environ), tmp_path)
    parts = [part.read_text().count("\n") for part in sorted(out.glob("answers/*/part-*"))]
    assert parts == [5, 5]
    assert figures_in(out)["score"] == figures_in(done)["score"]
    said = [(tmp_path / f"process_{rank}.log").read_text() for rank in range(2)]
    assert "# jsonl" in said[0] and "# jsonl" not in said[1]
