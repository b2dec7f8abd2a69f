"""Evaluate models on a benchmark: `egogrpo evaluate CONFIG.yaml ... key=value ...`.

Answers come first and scores second: each answer is stored as it is given, and the same command goes on where it was
stopped. Then all stored answers are scored, and results.json, results.md and the page items/index.html are written
into out_dir.
Over several processes: `accelerate launch -m grpo.commands evaluate ...`, or one command with --shard I/N for each,
and one with --score-only behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from grpo.benchmarks import find_benchmark
from grpo.benchmarks.answers import (
    AnswerWriter,
    answers_folder,
    check_answers,
    note_missing,
    noted_missing,
    questions_digest,
    read_answers,
    unanswered,
)
from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, StoredAnswer
from grpo.benchmarks.changed import PLAIN, all_asked, share_of
from grpo.benchmarks.prompts import digest, direct
from grpo.benchmarks.questions import read_questions, stored_under, without_missing
from grpo.benchmarks.scoring import by_rules, check_judge, score_answers
from grpo.commands.arguments import Parser
from grpo.commands.evaluate.page import Strips, write_items
from grpo.config.evaluate import BenchmarkFiles, EvaluateConfig, load_evaluation
from grpo.data.errors import NoSuchFile
from grpo.groups import Prompt, Sample
from grpo.media.sampling import MediaSettings
from grpo.policy.model_folder import find_model_folder, weights_identity
from grpo.run.manifest import make_manifest
from grpo.run.progress import say, under_way
from grpo.startup.ranks import launched_rank

if TYPE_CHECKING:
    from accelerate import Accelerator

SESSIONS = "sessions.jsonl"
"""The file of an answers folder that has a line of times for each time that a process has answered."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation that is ready to ask or score."""

    config: EvaluateConfig
    benchmark: Benchmark
    every: list[Sample]
    """All questions of the benchmark's file."""
    samples: list[Sample]
    """The questions that are asked: the first so many, with a video that is there."""
    missing: frozenset[str] = frozenset()
    """The ids of questions that are left out since their video is missing."""
    rank: int = 0
    num_processes: int = 1

    @property
    def answers(self) -> Path:
        return Path(self.config.out_dir) / "answers"

    @property
    def asked(self) -> list[tuple[Sample, str]]:
        return all_asked(self.samples, blind=self.config.blind, rotations=self.config.rotations)

    @property
    def strips(self) -> Strips:
        """The film strips of the page of items."""
        return Strips(folder=Path(self.config.out_dir) / "items", media=self.config.media)

    def keep_strip(self) -> Callable[[Prompt], object]:
        """A function that keeps the frames of a question that will be on the page."""
        on_page, strips = {sample.id for sample in self.every[: self.config.page_items]}, self.strips

        def keep(prompt: Prompt) -> None:
            if prompt.sample.id in on_page:
                for source, clip in zip(prompt.sample.sources, prompt.clips, strict=True):
                    strips.keep(source, clip)

        return keep

    @property
    def has_tags(self) -> bool:
        return bool(self.config.tags)


def main(argv: Sequence[str]) -> int:
    """Answer what has no answer yet, and score all; the exit status."""
    parser = Parser(
        prog="egogrpo evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG | key=value")
    parser.add_argument(
        "--score-only", action="store_true", help="score stored answers again, without a model"
    )
    parser.add_argument(
        "--shard", type=_shard, help="I/N: answer the I-th of N shares (from 0), score nothing"
    )
    options = parser.parse_intermixed_args(argv)
    try:
        evaluated = prepare(options.configs, shard=options.shard, score_only=options.score_only)
        if not options.score_only:
            answer_all(evaluated)
        if evaluated.rank == 0 and options.shard is None:
            report(evaluated)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])


def prepare(argv: list[str], *, shard: tuple[int, int] | None = None, score_only: bool = False) -> Evaluated:
    """Read settings and questions; ValueError or OSError, in one line, for a user's mistake."""
    config = load_evaluation(argv)
    benchmark = find_benchmark(config.benchmark)
    check_uses(config, benchmark, is_scored=shard is None)
    launched = launched_rank(os.environ), int(os.environ.get("WORLD_SIZE", "1"))
    rank, num_processes = shard or launched
    try:
        every = read_questions(benchmark, config.data)
    except NoSuchFile as error:
        where = "docs/benchmarks.md says where benchmarks are to be had"
        raise FileNotFoundError(f"data.path: {error}; {where}") from None
    if not score_only:
        for name, path in config.paths.items():
            find_model_folder(path, f"models.{name}" if name in config.models else "model.path")
    if not every:
        raise ValueError(f"data.path: {config.data.path} has no questions of {benchmark.name}")
    samples = first = every[: config.max_samples]
    if not score_only:
        tell = say if rank == 0 else lambda _: None
        samples = without_missing(first, allow_missing=config.allow_missing, say=tell)
    return Evaluated(
        config=config,
        benchmark=benchmark,
        every=every,
        samples=samples,
        missing=frozenset({each.id for each in first} - {each.id for each in samples}),
        rank=rank,
        num_processes=num_processes,
    )


def check_uses(config: EvaluateConfig, benchmark: Benchmark, *, is_scored: bool) -> None:
    """Raise ValueError for settings that the benchmark has no use for, or lacks."""
    # Where nothing is scored there need not be a key.
    judge = {name: value for name, value in config.judge.items() if is_scored or name != "api_key_env"}
    check_judge(benchmark, judge, "judge")
    if config.likeliest and benchmark.candidates is None:
        raise ValueError(f"likeliest: {benchmark.name} has no candidates whose losses could be compared")
    if config.prompt == "official" and benchmark.candidates is not None and not config.likeliest:
        raise ValueError(
            f"likeliest: the official prompt of {benchmark.name} shows no options to answer with: set likeliest=true "
            "or prompt=direct"
        )


def header_of(evaluated: Evaluated) -> dict[str, Any]:
    """What a model's answers depend on beside its weights."""
    config, benchmark = evaluated.config, evaluated.benchmark
    names = [each.name for each in fields(MediaSettings)]
    wording: Any = {"system": config.think.system, **asdict(config.think), "tags": config.tags}
    if config.prompt != "think":
        user = benchmark.prompt if config.prompt == "official" and benchmark.prompt else direct
        wording = {"system": benchmark.system, "user": digest("\0".join(map(user, evaluated.every)))}
    rollout = config.rollout
    return {
        "benchmark": benchmark.name,
        "questions": questions_digest(evaluated.every, media_folder(config.data)),
        "media_root": config.data.media_root,
        "prompt": config.prompt,
        "wording": wording,
        "media": {name: getattr(config.media, name) for name in names},
        "engine": rollout.engine,
        "likeliest": config.likeliest,
        "num_samples": rollout.num_samples,
        "temperature": rollout.temperature,
        "max_new_tokens": rollout.max_new_tokens,
        "max_model_tokens": rollout.max_model_tokens,
        "stop": rollout.stop,
        **({"regex": rollout.regex} if rollout.regex else {}),
        "seed": config.seed if rollout.temperature else None,
    }


def media_folder(data: BenchmarkFiles) -> str:
    """The folder that media paths start from, as the readers take it."""
    if data.media_root is not None:
        return os.path.normpath(data.media_root)
    path = Path(data.path)
    return os.path.normpath(path if path.is_dir() else path.parent)


def answer_all(evaluated: Evaluated) -> None:
    """Have each model answer this process's share of what it has not answered yet."""
    with under_way("importing torch and transformers", is_shown=evaluated.rank == 0):
        from grpo.learner.launching import compute_dtype, make_accelerator, quiet_libraries
        from grpo.policy.families import load_family

    quiet_libraries()
    accelerator = make_accelerator()
    for path in evaluated.config.paths.values():
        load_family(path, seconds_dtype=compute_dtype())
    for name, path in evaluated.config.paths.items():
        answer(evaluated, name, path, accelerator)
    accelerator.wait_for_everyone()


def answer(evaluated: Evaluated, name: str, path: str, accelerator: Accelerator) -> None:
    """Have a model answer this process's share of what it has not answered yet."""
    config, benchmark = evaluated.config, evaluated.benchmark
    with under_way(f"reading {path}", is_shown=evaluated.rank == 0):
        weights = weights_identity(find_model_folder(path))
    header = {**header_of(evaluated), "weights": weights}
    folder = answers_folder(evaluated.answers, name, header)
    own = share_of(evaluated.asked, rank=evaluated.rank, num_processes=evaluated.num_processes)
    with AnswerWriter(folder, header, evaluated.rank) as writer:
        note_missing(folder, evaluated.missing, evaluated.rank)
        known = read_answers(folder)
        check_answers(known.values(), evaluated.every, folder)
        left = unanswered(own, known, num_samples=config.rollout.num_samples)
        from accelerate.utils import gather_object

        # vLLM's start waits for all processes, so those that are done start it with those that are not.
        if not any(gather_object([len(left)])):
            return
        from grpo.commands.evaluate.asking import Asker
        from grpo.startup.answering import answering

        with (
            answering(config, benchmark, path, accelerator) as model,
            tqdm(
                desc=f"{benchmark.name}, {name}",
                total=len(own),
                initial=len(own) - len(left),
                unit="question",
                disable=evaluated.rank > 0,
            ) as bar,
        ):
            running = Running(evaluated, bar, known.values())

            def write(answer: StoredAnswer) -> None:
                writer.write(answer)
                running.add(answer)

            asker = Asker(
                model=model,
                write=write,
                seed=config.seed,
                batch_prompts=config.rollout.batch_prompts,
                candidates=benchmark.candidates if config.likeliest else None,
                num_samples=config.rollout.num_samples,
                show=evaluated.keep_strip(),
            )
            timing = asker.ask(left, bar)
    if not left:
        return
    with (folder / SESSIONS).open("a") as file:
        file.write(json.dumps({"process": evaluated.rank, **asdict(timing)}) + "\n")


class Running:
    """The score so far, shown beside a bar: of all answers that are there, not of the new ones alone."""

    def __init__(self, evaluated: Evaluated, bar: tqdm, known: Any) -> None:
        self.evaluated, self.bar = evaluated, bar
        self.samples = {sample.id: sample for sample in evaluated.samples}
        self.total, self.count = 0.0, 0
        for each in known:
            self.add(each)

    def add(self, answer: StoredAnswer) -> None:
        if answer.variant != PLAIN or answer.sample_id not in self.samples:
            return
        benchmark, sample = self.evaluated.benchmark, self.samples[answer.sample_id]
        verdict = by_rules(benchmark, sample, answer, has_tags=self.evaluated.has_tags).verdict
        if verdict is None or benchmark.judge is not None:
            return
        self.total += verdict.score
        self.count += 1
        self.bar.set_postfix_str(f"score {self.total / self.count:.3f}", refresh=False)


def report(evaluated: Evaluated) -> None:
    """Score all models' stored answers, and write and print the results."""
    from grpo.benchmarks.results import Results, as_markdown, write_results

    config, header = evaluated.config, header_of(evaluated)
    folders = {
        name: stored_under(evaluated.answers, name, header, path) for name, path in config.paths.items()
    }
    answers = {name: read_answers(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        check_answers(answers[name].values(), evaluated.every, folder)
    samples = evaluated.samples
    if config.allow_missing:
        left_out = {
            sample_id
            for name, folder in folders.items()
            for sample_id in noted_missing(folder) - {sample_id for sample_id, _, _ in answers[name]}
        }
        samples = [sample for sample in samples if sample.id not in left_out]
    asked = all_asked(samples, blind=config.blind, rotations=config.rotations)
    judge = {"cache": str(Path(config.out_dir) / "judge.sqlite"), **config.judge}
    scored: dict[str, list[ScoredAnswer]] = {
        name: score_answers(
            evaluated.benchmark,
            asked,
            answers[name],
            num_samples=config.rollout.num_samples,
            has_tags=evaluated.has_tags,
            judge=judge,
            is_shown=True,
            tell=say,
        )
        for name in folders
    }
    results = Results(
        benchmark=evaluated.benchmark,
        prompt={"kind": config.prompt, "digest": digest(json.dumps(header["wording"], sort_keys=True))},
        num_missing=len(evaluated.missing) + len(evaluated.samples) - len(samples),
        paths=config.paths,
        folders={name: str(folder) for name, folder in folders.items()},
        scored=scored,
        timings={name: timing_of(folder) for name, folder in folders.items()},
        manifest=make_manifest(
            data_files=[config.data.path],
            settings={
                "settings": without_secrets(asdict(config)),
                "num_in_file": len(evaluated.every),
            },
        ),
    )
    write_results(Path(config.out_dir), results)
    print(as_markdown(results))
    if config.page_items:
        write_items(results, evaluated.strips, config.page_items)
    print(f"done: {config.out_dir}/ (results.json, results.md, items/index.html, answers/)")


def without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without fields of judge requests, which may hold keys."""
    return {**settings, "judge": {k: v for k, v in settings["judge"].items() if k != "extra_body"}}


def timing_of(folder: Path) -> Mapping[str, float | None]:
    """The questions answered per second, all processes together, and how much of that time the engine worked."""
    path = folder / SESSIONS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    of_process: dict[int, float] = {}
    for row in rows:
        of_process[row["process"]] = of_process.get(row["process"], 0.0) + row["wall_s"]
    wall_s = sum(row["wall_s"] for row in rows)
    if not wall_s:
        return {"items_per_s": None, "engine_busy_frac": None}
    return {
        "items_per_s": sum(row["num_questions"] for row in rows) / max(of_process.values()),
        "engine_busy_frac": sum(row["engine_s"] for row in rows) / wall_s,
    }
