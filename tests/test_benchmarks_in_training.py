"""Benchmarks on a slice at intervals: marked by a judge behind real HTTP, or by the option of lowest loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.benchmarks import BENCHMARKS, find_benchmark
from grpo.benchmarks.benchmark import StoredAnswer
from grpo.benchmarks.questions import read_questions
from grpo.benchmarks.scoring import by_rules
from grpo.config.evaluate import BenchmarkFiles
from grpo.config.learner import LossConfig
from grpo.config.load import load_config
from grpo.config.schema import DatasetConfig
from grpo.evaluation import EvalSet, benchmark_metrics
from grpo.learner.candidates import candidate_row, losses_of_candidates
from grpo.run.folder import best_checkpoint
from grpo.run.recorder import held_out_score
from grpo.startup.checks import read_held_out
from tests.support import scenes, tiny
from tests.support.judge_server import Answer, JudgeServer, Request, free_port, says
from tests.support.learners import make_learner
from tests.support.readers import EGOPLAN, EGOTHINK, EXAMPLES, OPENEQA, WRITERS, write_media
from tests.support.runs import run

SAMPLE = tiny.sample("q", question="What am I holding?", answer="A brush.", task="open", options=())


def marked(judge: Mapping[str, Any], *said: str, limit_s: float = 60.0) -> tuple[dict[str, float], list[str]]:
    """The metrics of answers to EgoThink's questions, and what the user is told."""
    benchmark, told = BENCHMARKS["egothink"], list[str]()
    answers = [StoredAnswer(sample_id="q", index=0, text=text, finish="stop") for text in said]
    scored = [by_rules(benchmark, SAMPLE, answer, has_tags=False) for answer in answers]
    held = EvalSet(name="ego", samples=[SAMPLE], benchmark=benchmark, judge=judge, judge_timeout_s=limit_s)
    return benchmark_metrics(held, scored, told.append).reduced(), told


def settings(base_url: str) -> dict[str, Any]:
    return {"base_url": base_url, "model": "tiny", "retries": 0, "backoff_s": 0.01}


def test_each_judged_benchmark_is_read_in_training_if_its_judge_is_named(tmp_path: Path) -> None:
    for name in ("openeqa", "egotempo", "egothink", "egocross_open"):
        path = WRITERS[name](tmp_path / name, EXAMPLES[name])
        held = DatasetConfig(path=str(path), benchmark=name, name="held", judge=settings("http://x:1/v1"))
        assert read_held_out(held)
        for judge, says_what in (
            (
                {},
                rf"data\.eval\.held\.judge: {name} is marked by a judge: set data\.eval\.held\.judge\.base_url",
            ),
            (
                {**held.judge, "tries": 3},
                r"no setting data\.eval\.held\.judge\.tries; there are base_url, model",
            ),
            ({**held.judge, "retries": -1}, r"data\.eval\.held\.judge: retries: must be 0 or more"),
            ({**held.judge, "api_key_env": "NO_SUCH"}, r"data\.eval\.held\.judge: .*NO_SUCH"),
        ):
            with pytest.raises(ValueError, match=says_what):
                read_held_out(replace(held, judge=judge))
    unjudged = DatasetConfig(path="x", benchmark="egoschema", name="held", judge={"modle": "x"})
    with pytest.raises(ValueError, match=r"data\.eval\.held\.judge: egoschema wants no judge"):
        read_held_out(unjudged)


def test_a_judge_is_of_a_held_out_set_with_a_benchmark() -> None:
    least = ["run_dir=x", "num_steps=1", "model.path=x", "rewards={accuracy: {}}"]
    for sets, says_what in (
        ("data.train=[{path: x, judge: {model: x}}]", "only held-out sets are of a benchmark"),
        ("data.eval=[{path: x, judge: {model: x}}]", "a judge is for a set with a benchmark"),
    ):
        with pytest.raises(ValueError, match=says_what):
            load_config([*least, "data.train=[{path: x}]", sets])


def test_marks_make_the_scores_and_are_asked_for_once(tmp_path: Path) -> None:
    """Marks 1, 0.5 and none, and a blank answer: ours is (1 + 0.5 + 0 + 0) / 4, official (1 + 0.5) / 2."""
    marks = {"a brush": "[[1]]", "a tool": "[[0.5]]", "hm": "Who knows."}

    def respond(request: Request, _: int) -> Answer:
        return says(
            next(
                mark
                for text, mark in marks.items()
                if f"Answer]\n{text}\n[" in str(request.body["messages"][-1]["content"])
            )
        )

    with JudgeServer(respond) as server:
        judge = settings(server.base_url) | {"cache": str(tmp_path / "judge.sqlite")}
        row, told = marked(judge, "a brush", "a tool", "hm", " ")
        assert row == {
            "eval/ego/ours": 0.375,
            "eval/ego/official": 0.75,
            "eval/ego/unparsed": 0.25,
            "eval/ego/unjudged": 0.25,
        }
        assert (
            len(told) == 1 and "1 of 4 answers have no mark: no score from 0 to 1 in two replies" in told[0]
        )
        num_asked = len(server.requests)
        again, _ = marked(judge, "a brush", "a tool")
    assert len(server.requests) == num_asked and again["eval/ego/ours"] == 0.75


def test_a_judge_that_is_down_leaves_answers_unjudged_and_moves_no_best_checkpoint() -> None:
    row, told = marked(settings(f"http://127.0.0.1:{free_port()}/v1"), *(f"thing {i}" for i in range(40)))
    assert row == {"eval/ego/ours": 0.0, "eval/ego/unparsed": 0.0, "eval/ego/unjudged": 1.0}
    assert "40 of 40 answers have no mark" in told[0] and told[0].endswith("(eval/ego)")
    held = ["data.eval=[{path: x, name: ego, benchmark: egothink, judge: {model: x}}]"]
    least = ["run_dir=x", "num_steps=1", "model.path=x", "rewards={accuracy: {}}", "data.train=[{path: x}]"]
    by = {
        name: load_config([*least, *held, f"eval.best_metric=eval/ego/{name}"])
        for name in ("ours", "official")
    }
    assert held_out_score(row, by["official"]) is None
    assert held_out_score(row, by["ours"]) == (0.0, "eval/ego/ours of ego: x")
    for unjudged, expected in ((0.99, None), (0.06, None), (0.05, (1.0, "eval/ego/official of ego: x"))):
        few = {"eval/ego/ours": 0.005, "eval/ego/official": 1.0, "eval/ego/unjudged": unjudged}
        assert held_out_score(few, by["official"]) == expected
    # All answers are blank: there is nothing to mark.
    assert held_out_score({"eval/ego/ours": 0.0, "eval/ego/unjudged": 0.0}, by["official"]) is None
    with pytest.raises(ValueError, match="no metric eval/ego/ours; there are eval/ego/unjudged"):
        held_out_score({"eval/ego/unjudged": 1.0}, by["ours"])
    with pytest.raises(ValueError, match=r"eval\.best_metric: there is no eval/ego/unjudged"):
        load_config([*least, *held, "eval.best_metric=eval/ego/unjudged"])


def test_a_cache_that_can_not_be_opened_any_more_leaves_answers_unjudged(tmp_path: Path) -> None:
    cache = tmp_path / "judge.sqlite"
    cache.write_text("This is no database." * 100)
    row, told = marked(settings("http://x:1/v1") | {"cache": str(cache)}, "a brush", " ")
    assert row == {"eval/ego/ours": 0.0, "eval/ego/unparsed": 0.5, "eval/ego/unjudged": 0.5}
    assert len(told) == 1 and f"no answer has a mark: cache: {cache} can't be used" in told[0]


def test_a_slow_judge_is_waited_for_no_longer_than_is_set(tmp_path: Path) -> None:
    """It answers the first request at once and the others after a minute."""

    def respond(_: Request, number: int) -> Answer:
        return replace(says("[[1]]"), delay_s=60.0 if number else 0.0)

    with JudgeServer(respond) as server:
        judge = settings(server.base_url) | {"cache": str(tmp_path / "judge.sqlite")}
        assert marked(judge, "a")[0]["eval/ego/ours"] == 1.0
        row, told = marked(judge | {"request_timeout_s": 600}, "a", "b", "c", "d", limit_s=0.2)
    assert (row["eval/ego/ours"], row["eval/ego/unjudged"]) == (0.25, 0.75)
    assert "3 of 4 answers have no mark: the judge was waited for no longer" in told[0]


def test_the_learner_gives_the_losses_of_candidates_at_temperature_1() -> None:
    """Each text's loss is that of a row of its own, whatever temperature is sampled at."""
    texts = ("red", "<think>i am not sure</think>", "<answer>B</answer>")
    plain, prompts = tiny.policy(), scenes.prompts(2)
    learner = make_learner(tiny.policy(), loss=LossConfig())
    learner.policy.head.temperature, was_training = 0.5, learner.policy.training
    found = losses_of_candidates(learner, prompts, [texts, texts[:2]])
    assert list(map(len, found)) == [3, 2]
    for prompt, losses in zip(prompts, found, strict=True):
        rows = [candidate_row(prompt, [text], tiny.family()) for text in texts[: len(losses)]]
        assert losses == pytest.approx([-plain(row).logps_T.mean().item() for row in rows], abs=1e-4)
    assert learner.policy.head.temperature == 0.5 and learner.policy.training == was_training
    assert losses_of_candidates(learner, [], []) == []


def test_a_run_evaluates_with_a_judge_and_by_lowest_loss_and_keeps_the_best(
    clips: Path, tmp_path: Path
) -> None:
    """The judge likes what the model says after the step better; another one is not there at all."""
    records = {"egothink": [EGOTHINK] * 2, "egoplan": [EGOPLAN], "openeqa": [OPENEQA]}
    files = {name: WRITERS[name](tmp_path / name, *rows) for name, rows in records.items()}
    for name, path in files.items():
        for sample in read_questions(find_benchmark(name), BenchmarkFiles(path=str(path))):
            write_media(sample, num_frames=160, fps=10)
    down = f"http://127.0.0.1:{free_port()}/v1"
    with JudgeServer(lambda _, __: says("[[0.5]]")) as server:
        judges = {"egothink": server.base_url, "openeqa": down}
        sets = [
            f"{{path: {path}, name: {name}, benchmark: {name}, official_prompt: true, judge: "
            + (f"{{base_url: '{judges[name]}', model: tiny, retries: 0}}}}" if name in judges else "{}}")
            for name, path in files.items()
        ]
        rows = run(
            tmp_path / "run",
            clips,
            f"data.eval=[{', '.join(sets)}]",
            *(
                "num_steps=1",
                "eval.every_steps=1",
                "eval.best_metric=eval/egothink/ours",
                "eval.judge_timeout_s=60",
            ),
            *("rollout.max_new_tokens=24", "rollout.max_model_tokens=1024", "checkpoint.every_steps=1"),
        )
        num_asked = len(server.requests)
    for row in rows:
        assert row["eval/egothink/ours"] == row["eval/egothink/official"] == 0.5
        assert (row["eval/egothink/unjudged"], row["eval/openeqa/unjudged"]) == (0.0, 1.0)
        assert "eval/openeqa/official" not in row
        assert row["eval/egoplan/ours"] in (0.0, 1.0) and row["eval/egoplan/unparsed"] == 0.0
    # Equal questions and answers are asked about once, and then known.
    assert 1 <= num_asked <= 2
    assert best_checkpoint(tmp_path / "run" / "checkpoints") == 1
    assert os.path.exists(tmp_path / "run" / "eval_judge.sqlite")
