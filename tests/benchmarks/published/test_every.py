"""What holds of every benchmark: it runs from a made-up folder in its official layout, and has a config of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from tqdm import tqdm

from grpo.benchmarks import BENCHMARKS
from grpo.benchmarks.benchmark import Benchmark, StoredAnswer
from grpo.benchmarks.changed import PLAIN
from grpo.benchmarks.figures import figures_of
from grpo.benchmarks.questions import read_questions
from grpo.benchmarks.scoring import score_answers
from grpo.commands.__main__ import main as egogrpo
from grpo.commands.evaluate.asking import Asker
from grpo.config.evaluate import BenchmarkFiles, load_evaluation
from grpo.groups import Group
from grpo.learner.launching import make_accelerator
from grpo.rollout import Engine, as_rollout
from grpo.startup.answering import Answering, answering, renderer
from tests.support import tiny
from tests.support.judge_server import JudgeServer, says
from tests.support.readers import EGOTHINK, EXAMPLES, HD_EPIC, QAEGO4D, WRITERS, write_json, write_media
from tests.support.runs import reset_process_state

CONFIGS = sorted((tiny.ROOT / "configs" / "eval").glob("*.yaml"))
MEDIA = ["media.max_frames=4", "media.min_pixels=784", "media.max_pixels=3136", "media.num_workers=1"]


def load(path: Path):
    """A config; one that has no media of its own goes on top of that of its benchmark's other form."""
    base = next((each for each in CONFIGS if path.stem.startswith(f"{each.stem}_")), None)
    is_part = "media" not in yaml.safe_load(path.read_text())
    return load_evaluation([*([str(base)] if base and is_part else []), str(path), "model.path=x"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_evaluation_file_loads(path: Path):
    config = load(path)
    assert config.out_dir == f"runs/eval/{path.stem}"
    assert f"configs/eval/{path.name}" in path.read_text()


def test_every_benchmark_has_a_config_of_its_name_and_a_row_in_the_docs():
    assert {load(path).benchmark for path in CONFIGS if path.stem in BENCHMARKS} == BENCHMARKS.keys()
    page = (tiny.ROOT / "docs" / "benchmarks.md").read_text()
    assert [name for name in BENCHMARKS if f"| `{name}` |" not in page] == []


def test_every_benchmark_names_its_sources_and_takes_its_own_name():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.sources and all(each.startswith("https://") for each in benchmark.sources)


def written(name: str, folder: Path) -> Path:
    """The benchmark's file of made-up questions."""
    if name == "egotempo_choices":
        records = [EXAMPLES["egotempo"] | {"question_id": f"q{i}", "answer": f"Thing {i}."} for i in range(4)]
        return WRITERS["egotempo"](folder, *records)
    if name == "qaego4d_closed":
        return WRITERS["qaego4d"](folder, QAEGO4D | {"wrong_answers": ["in a box", "there", "nowhere"]})
    if name == "openeqa_184":
        write_json(folder / "open-eqa-v0-184-questions.json", ["f2e8-one"])
    reader = {
        "egoschema_full": "egoschema",
        "egoplan_frame": "egoplan",
        "egoplan_letters": "egoplan",
        "egoplan2": "egoplan",
        "openeqa_184": "openeqa",
    }.get(name, name)
    return WRITERS[reader](folder, EXAMPLES[reader])


@pytest.fixture(scope="module")
def judge() -> Iterator[dict[str, Any]]:
    """A judge that gives no mark: then every answer that it got is `unjudged`."""
    with JudgeServer(lambda request, number: says("I can't tell.")) as server:
        yield {"base_url": server.base_url, "model": "tiny", "retries": 0}


SIZE = ["rollout.engine=transformers", "rollout.max_new_tokens=4", "rollout.max_model_tokens=2048"]


def settings(name: str, path: Path, out: Path) -> list[str]:
    own = [f"out_dir={out}", f"benchmark={name}", f"data.path={path}", f"model.path={tiny.BASE_POLICY}"]
    return [*own, *SIZE, *MEDIA, f"media.cache_dir={out}/cache"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    """A tiny model that answers whatever it is asked."""
    folder = tmp_path_factory.mktemp("model")
    config = load_evaluation(settings("egoschema", folder, folder))
    try:
        with answering(config, BENCHMARKS["egoschema"], str(tiny.BASE_POLICY), make_accelerator()) as model:
            yield model
    finally:
        reset_process_state()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_asked_from_its_files_and_scored(
    name: str, tmp_path: Path, judge: dict[str, Any], model: Answering
):
    """All questions are in the denominator, whatever four tokens of a tiny model say."""
    benchmark = BENCHMARKS[name]
    path = written(name, tmp_path / "data")
    samples = read_questions(benchmark, BenchmarkFiles(path=str(path)))
    for sample in samples:
        write_media(sample, num_frames=160, fps=10)
    config = load_evaluation(settings(name, path, tmp_path / "out"))
    answers: list[StoredAnswer] = []
    asker = Asker(
        model=replace(model, render=renderer(config, benchmark, model.family)),
        write=answers.append,
        seed=0,
        batch_prompts=8,
        candidates=benchmark.candidates,
    )
    asked = [(sample, PLAIN) for sample in samples]
    asker.ask(asked, tqdm(disable=True))
    stored = {(each.sample_id, each.variant, each.index): each for each in answers}
    assert [each.text for each in answers if each.finish == "failed"] == []
    scored = score_answers(benchmark, asked, stored, judge=judge)
    figures = figures_of(benchmark, scored)
    assert figures["num_questions"] == len(samples) > 0
    assert sum(figures["outcomes"].values()) == len(samples)
    assert 0 <= figures["score"] <= 1
    assert figures["groups"].keys() == set(benchmark.groups)
    assert benchmark.submission is None or benchmark.submission(scored)


HAND: dict[str, tuple[str, str]] = {
    "egoschema": ("D", "A"),
    "egoschema_full": ("D", "A"),
    "egocross": ("B", "C"),
    "egocross_open": ("Dog", "Turtle"),
    "egoplan": ("C", "A"),
    "egoplan_frame": ("C", "A"),
    "egoplan_letters": ("C", "A"),
    "egoplan2": ("C", "A"),
    "openeqa": ("On the desk", "Turtle"),
    "openeqa_184": ("On the desk", "Turtle"),
    "vsi_bench": ("B", "A"),
    "qaego4d": ("on the table", "in a box"),
    "qaego4d_closed": ("on the table", "in a box"),
    "egotempo": ("The cup is washed.", "Turtle"),
    "egothink": ("A brush.", "Turtle"),
    "charades_sta": ("2.5 - 6.9", "10.0 - 12.0"),
    "ego4d_nlq": ("2.500-13.666", "20-25"),
    "video_mme": ("B", "A"),
    "hd_epic": ("D", "A"),
    "egotaskqa": ("D", "A"),
    "hourvideo": ("C", "A"),
}
"""A right and a wrong answer to the one record of each benchmark, as a person reads it off."""
MARKS = {
    "egocross_open": ('{"mark": 5}', '{"mark": 0}'),
    "openeqa": ("5", "1"),
    "openeqa_184": ("5", "1"),
    "egotempo": ("{'pred': 'correct'}", "{'pred': 'incorrect'}"),
    "egothink": ("[[1]]", "[[0]]"),
}
"""The best and the worst mark of each benchmark's judge."""


class Says:
    """An engine that gives the same answer to every question."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, prompts: Any, sampling: Any, seeds: Any, on_group: Any) -> list[Group]:
        said = [
            as_rollout(each, text=self.text, token_ids=[1], logprobs=[0.0], stopped=True) for each in prompts
        ]
        groups = [Group(prompt=each, rollouts=(one,)) for each, one in zip(prompts, said, strict=True)]
        for group in groups:
            on_group(group)
        return groups


@pytest.mark.parametrize("name", HAND)
def test_the_command_scores_a_right_answer_1_and_a_wrong_one_0(
    name: str, tmp_path: Path, model: Answering, monkeypatch: pytest.MonkeyPatch
):
    path = written(name, tmp_path / "data")
    for sample in read_questions(BENCHMARKS[name], BenchmarkFiles(path=str(path))):
        write_media(sample, num_frames=160, fps=10)
    texts = iter(HAND[name])

    @contextmanager
    def said(config: Any, benchmark: Benchmark, *_: object) -> Iterator[Answering]:
        render = renderer(config, benchmark, model.family)
        yield replace(model, render=render, engine=cast(Engine, Says(next(texts))))

    monkeypatch.setattr("grpo.startup.answering.answering", said)
    own = [*settings(name, path, tmp_path / "out"), f"models.wrong={tiny.BASE_POLICY}", "blind=false"]
    # The official prompt of these compares candidates' losses, and nothing is said.
    own += ["prompt=direct"] if BENCHMARKS[name].candidates else []
    best, worst = MARKS.get(name, ("", ""))
    with JudgeServer(lambda request, _: says(worst if "Turtle" in str(request.body) else best)) as server:
        judge = [f"judge.base_url={server.base_url}", "judge.model=tiny"] if name in MARKS else []
        assert egogrpo(["evaluate", *own, *judge]) == 0
    right, wrong = json.loads((tmp_path / "out" / "results.json").read_text())["models"].values()
    asked = right["num_questions"]
    assert asked > 0
    assert (right["score"], right["outcomes"]) == (1.0, {"right": asked})
    assert (wrong["score"], wrong["outcomes"]) == (0.0, {"wrong": asked})


def test_the_command_writes_the_submission_of_questions_without_answers(tmp_path: Path):
    unknown = ("correct_option_letter", "answer_text", "detailed_answer", "question_id")
    record = {key: value for key, value in EXAMPLES["egocross"].items() if key not in unknown}
    path = write_json(tmp_path / "data/egocross_testbed_imgs.json", [record])
    for sample in read_questions(BENCHMARKS["egocross"], BenchmarkFiles(path=str(path))):
        write_media(sample, num_frames=3, fps=1)
    try:
        assert egogrpo(["evaluate", *settings("egocross", path, tmp_path / "out")]) == 0
    finally:
        reset_process_state()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    [figures] = results["models"].values()
    assert (figures["num_questions"], figures["num_unpublished"]) == (0, 1)
    [file] = (tmp_path / "out" / "submission").glob("*/submission.json")
    assert json.loads(file.read_text()) == [{"id": 7, "dataset": "EgoPet", "answer": ""}]


def test_a_folder_of_files_is_one_benchmark(tmp_path: Path):
    for task in ("Activity", "Object/existence"):
        write_json(tmp_path / "data" / task / "annotations.json", [EGOTHINK])
    samples = read_questions(BENCHMARKS["egothink"], BenchmarkFiles(path=str(tmp_path / "data")))
    assert [each.columns["task"] for each in samples] == ["Activity", "existence"]
    for name in ("gaze_gaze_estimation", "recipe_step_recognition"):
        write_json(tmp_path / "vqa" / f"{name}.json", {f"{name}_0": HD_EPIC})
    samples = read_questions(
        BENCHMARKS["hd_epic"], BenchmarkFiles(path=str(tmp_path / "vqa"), media_root=str(tmp_path / "videos"))
    )
    assert [each.columns["category"] for each in samples] == ["gaze", "recipe"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data.path: .*/empty has no \*\*/annotations.json"):
        read_questions(BENCHMARKS["egothink"], BenchmarkFiles(path=str(tmp_path / "empty")))
