"""Evaluating the demo's 200 held-out questions, and scoring 100,000 stored answers.

    python -m tests.benchmarks.bench_evaluate [--questions 200] [--answers 100000]

Prints JSON: the share of the wall time in which the engine worked, from its first batch on (0.9 or more is wanted);
how often a clip was decoded that had been decoded before, where each has two questions (never); the seconds from the
engine's start to the first new answer of an evaluation that goes on (10 at most); and the seconds in which the stored
answers are read and scored, with intervals and tables (30 at most).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo.benchmarks.answers import AnswerWriter, read_answers
from grpo.benchmarks.benchmark import Benchmark, StoredAnswer
from grpo.benchmarks.results import Results, as_json, as_markdown
from grpo.benchmarks.scoring import score_answers
from grpo.commands.__main__ import main as egogrpo
from grpo.data import READERS
from grpo.demo.clips import write_dataset
from grpo.media.clip import ClipSource
from grpo.media.loader import ClipLoader, MediaCounters
from tests.support import tiny
from tests.support.runs import reset_process_state

SAID = ("<think>I look at the table.</think><answer>{}</answer>", "{}", "The answer is {}", "({})")


def evaluation(folder: Path, num_questions: int) -> dict[str, float]:
    """Figures of the demo's evaluation: a part of it first, then the rest by the same command."""
    data = (
        write_dataset(folder / "clips", num_train=0, num_heldout=num_questions // 2, seed=0) / "heldout.jsonl"
    )
    records = [json.loads(line) for line in data.read_text().splitlines()]
    twice = [{**record, "id": f"{record['id']}-{number}"} for number in range(2) for record in records]
    data.write_text("".join(json.dumps(record) + "\n" for record in twice))
    config = str(tiny.ROOT / "configs" / "eval" / "demo.yaml")
    own = ["benchmark=jsonl", f"data.path={data}", f"model.path={tiny.BASE_POLICY}", "blind=false"]
    command = [config, *own, f"out_dir={folder}/out", "rollout.batch_prompts=32"]
    counted: list[MediaCounters] = []
    close = ClipLoader.close

    def counting(self: ClipLoader) -> None:
        counted.append(self.counters())
        close(self)

    ClipLoader.close = counting
    for limit in (num_questions // 4, None):
        limited = [] if limit is None else [f"max_samples={limit}"]
        with contextlib.redirect_stdout(sys.stderr):
            assert egogrpo(["evaluate", *command, *limited]) == 0
        reset_process_state()
    first, rest = (
        json.loads(line)
        for line in next((folder / "out").glob("answers/*/sessions.jsonl")).read_text().splitlines()
    )
    decoded = sum(each.decoded for each in counted)
    return {
        "questions": num_questions,
        "engine_busy_frac": round(
            (first["engine_s"] + rest["engine_s"]) / (first["wall_s"] + rest["wall_s"]), 3
        ),
        "questions_per_s": round(rest["num_questions"] / rest["wall_s"], 1),
        "resumed_first_item_s": round(rest["first_item_s"], 2),
        "clips": len(records),
        "clips_decoded": decoded,
    }


def scoring(folder: Path, count: int) -> dict[str, float]:
    """Seconds to read and score so many stored answers of four kinds, about a fifth as many videos."""
    line = {
        "question": "Which one?",
        "options": ["a cup", "a knife", "a plate", "salt"],
        "answer": "B",
        "task": "choice",
    }
    path = folder / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"q{i}", "domain": f"d{i % 5}", **line}) + "\n" for i in range(count))
    )
    samples = [
        replace(sample, clip_source=ClipSource(video=f"clips/{number // 5}.mp4"))
        for number, sample in enumerate(READERS["jsonl"](str(path), None))
    ]
    with AnswerWriter(folder / "answers", {}) as writer:
        for number, sample in enumerate(samples):
            text = SAID[number % 4].format("ABCD"[number % 7 % 4])
            times_s = tuple(index / 2 for index in range(16))
            writer.write(
                StoredAnswer(
                    sample_id=sample.id, index=0, text=text, finish="stop", times_s=times_s, num_tokens=9
                )
            )
    started = time.perf_counter()
    benchmark = Benchmark(name="many", reader="jsonl", groups=("domain",))
    answers = read_answers(folder / "answers")
    read_s = time.perf_counter() - started
    scored = score_answers(benchmark, [(sample, "") for sample in samples], answers)
    results = Results(
        benchmark=benchmark,
        prompt={"kind": "direct", "digest": ""},
        num_missing=0,
        paths={"one": "", "two": ""},
        folders={"one": "", "two": ""},
        scored={"one": scored, "two": scored},
        timings={"one": {}, "two": {}},
        manifest={},
    )
    assert as_markdown(results) and json.dumps(as_json(results))
    elapsed_s = time.perf_counter() - started
    return {"answers": count, "read_s": round(read_s, 2), "scored_s": round(elapsed_s, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--answers", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "benchmark": "evaluate",
            **scoring(Path(folder), options.answers),
            **evaluation(Path(folder), options.questions),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
