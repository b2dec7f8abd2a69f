"""The official rules and prompts, compared with the authors' own code on texts drawn at random and on their own files.

    python -m tests.benchmarks.compare_official FOLDER

FOLDER holds clones of the repositories in `COMMITS`, by their names. Nothing of theirs is imported: single functions
are taken out of their files and run. Prints a line for each rule and prompt, and ends with 1 if one differs.
"""

from __future__ import annotations

import ast
import datetime
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from grpo.benchmarks import BENCHMARKS
from grpo.benchmarks.published import egoschema
from grpo.benchmarks.questions import read_questions
from grpo.config.evaluate import BenchmarkFiles
from grpo.groups import Sample

COMMITS = {
    "EgoCrossCodes": "EgoCross-Benchmark/EgoCrossCodes @6737720",
    "EgoPlan-Bench2": "qiulu66/EgoPlan-Bench2 @2523b38",
    "HourVideo": "keshik6/HourVideo @1ac83c2",
    "hd-epic-annotations": "hd-epic/hd-epic-annotations @a61ebbc",
    "hd-epic-vqa-eval": "hd-epic/hd-epic-vqa-eval @d0c233b",
    "lmms-eval": "EvolvingLMMs-Lab/lmms-eval @75571cf",
    "open-eqa": "facebookresearch/open-eqa @cfa3fce",
    "parse_answer": "thanku-all/parse_answer @afd52cf",
    "thinking-in-space": "vision-x-nyu/thinking-in-space @51e089c",
}
"""The repositories, each with the commit that was last compared."""
NUM_TEXTS = 20_000
OPTIONS = ("a cup is taken", "a red bowl is washed", "an onion is cut.", "a tap runs", "Nothing")
CHOICE = Sample(id="f/1", question="q", answer="B", task="choice", source="s", options=OPTIONS)
FOUR = replace(CHOICE, options=OPTIONS[:4])
SPAN = replace(CHOICE, task="span", answer="3.0-4.5", options=())
NUMBER = replace(CHOICE, task="regression", answer="2.5", options=())
BITS = (
    *"ABCDE .?,'!\n}{-–",
    *("(A)", "(B)", "b.", "(c)", "The answer is ", "Answer: ", "The best answer is ", "The correct option is"),
    *("Best answer:", "Best option:", "Option:", "answer", *OPTIONS, "I am sure that ", "A. ", "D: "),
    *("b. a red bowl is washed", "NASA ", '{"prediction": "B"}', '{"prediction": "b", "reason": "}"}', "```json\n"),
    *("1", "2.5", "3.0 - 4.5", "from 1 to 3 seconds", "00:12 - 00:15", "0:01:02", "start at 5.2s", "end at 7s"),
    *("happens in 3.1 – 9 s", "tomato", "12", "5m", "The", "T", "I think "),
)  # fmt: skip

Rule = Callable[[str], object]


def functions(file: Path, *names: str) -> SimpleNamespace:
    """The functions of these names, also of a class, taken out of a file with the modules that they use."""
    known: dict[str, Any] = {"re": re, "np": np, "random": random, "json": json, "ast": ast}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), str(file), "exec"), known)
    return SimpleNamespace(**{name: known[name] for name in names})


def official_of(name: str, sample: Sample) -> Rule:
    """Our transcription of a benchmark's rule, about one question."""
    rule = BENCHMARKS[name].official
    assert rule is not None
    return lambda text: rule(sample, text)


def rules(folder: Path) -> Iterator[tuple[str, Rule, Rule]]:
    """Each rule as the authors have it and as it is transcribed, as functions of a reply."""
    tasks = folder / "lmms-eval/lmms_eval/tasks"
    school = functions(tasks / "egoschema/utils.py", "parse_multi_choice_response")
    texts = {letter: f"{letter}. {option}".strip() for letter, option in zip("ABCDE", OPTIONS, strict=True)}

    def drawn_or_read(text: str) -> str:
        letter, is_read = school.parse_multi_choice_response(text, [*texts], texts)
        return letter if is_read else ""

    yield "egoschema", drawn_or_read, lambda text: egoschema.read(CHOICE, text)
    for name, file in (
        ("egoplan_letters", tasks / "egoplan/utils.py"),
        ("egoplan2", folder / "EgoPlan-Bench2/eval.py"),
        ("video_mme", folder / "parse_answer/eval_your_results.py"),
    ):
        letter_of = functions(file, "extract_characters_regex").extract_characters_regex
        # Only Video-MME leaves out what has no letter.
        none = None if name == "video_mme" else 0.0
        yield (
            name,
            lambda text, of=letter_of, none=none: float(letter == "B") if (letter := of(text)) else none,
            official_of(name, FOUR),
        )
    answer_of = functions(tasks / "egotaskqa/utils.py", "_extract_answer")._extract_answer
    named = dict(zip("ABCDE", OPTIONS, strict=True))
    yield "egotaskqa", lambda text: float(answer_of(text, named) == "B"), official_of("egotaskqa", CHOICE)
    sta = functions(tasks / "charades_sta/utils.py", "extract_time", "_time_to_seconds", "iou")

    def overlap(text: str) -> float:
        found = sta.extract_time(text)
        return sta.iou((3.0, 4.5), found[0]) if len(found) == 1 else 0.0

    yield "charades_sta", overlap, official_of("charades_sta", SPAN)
    yield from vsi_rules(folder / "thinking-in-space/lmms_eval/tasks/vsibench/utils.py")
    parse = functions(folder / "hd-epic-vqa-eval/models/base_model.py", "parse_response").parse_response
    yield "hd_epic", lambda text: float(parse(None, text, 5) == 1), official_of("hd_epic", CHOICE)
    closed = functions(folder / "EgoCrossCodes/eval_os_closedset.py", "parse_model_response")
    yield (
        "egocross",
        lambda text: float(closed.parse_model_response(text, "B")["success"]),
        official_of("egocross", FOUR),
    )
    first = functions(folder / "HourVideo/hourvideo/gpt4_utils.py", "extract_first_letter")
    yield (
        "hourvideo",
        lambda text: float(first.extract_first_letter(text) == "B"),
        official_of("hourvideo", CHOICE),
    )


def vsi_rules(file: Path) -> Iterator[tuple[str, Rule, Rule]]:
    names = ("fuzzy_matching", "exact_match", "abs_dist_norm", "mean_relative_accuracy", "to_float")
    theirs = functions(file, *names)

    def graded(text: str) -> float:
        try:
            got = theirs.to_float(theirs.fuzzy_matching(text))
            return float(theirs.mean_relative_accuracy(got, 2.5, 0.5, 0.95, 0.05))
        except TypeError:
            return 0.0

    def matched(text: str) -> float:
        return theirs.exact_match(theirs.fuzzy_matching(text), "B")

    yield "vsi_bench, choice", matched, official_of("vsi_bench", FOUR)
    yield "vsi_bench, number", graded, official_of("vsi_bench", NUMBER)


def prompts(folder: Path) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """The prompts of all questions of the published files, as the authors' code writes them and ours."""
    yield "hd_epic", *hd_epic_prompts(folder)
    file = folder / "open-eqa/data/open-eqa-v0.json"
    form = (folder / "open-eqa/prompts/gpt4v.txt").read_text().strip()
    asked = [form.format(question=each["question"]) for each in json.loads(file.read_text())]
    yield "openeqa", asked, ours("openeqa", file)
    file = folder / "EgoCrossCodes/datasets/egocross_testbed_imgs.json"
    options = ["\n".join(each["options"]) for each in json.loads(file.read_text())]
    between = [text.split("Options:\n")[1].split("The original FPS")[0] for text in ours("egocross", file)]
    yield "egocross's options", options, between


def ours(name: str, file: Path) -> list[str]:
    benchmark = BENCHMARKS[name]
    assert benchmark.prompt is not None
    given = BenchmarkFiles(path=str(file), media_root="/media")
    return [benchmark.prompt(sample) for sample in read_questions(benchmark, given)]


def hd_epic_prompts(folder: Path) -> tuple[list[str], list[str]]:
    names = ("formulate_question", "parse_tags", "time_from_tag", "bbox_from_tag", "secs_from_time_str")
    base, clock = (
        ast.parse((folder / f"hd-epic-vqa-eval/{name}.py").read_text())
        for name in ("models/base_model", "utils/questions")
    )
    known: dict[str, Any] = {"re": re, "time": time, "datetime": datetime}
    for node in (*ast.walk(base), *ast.walk(clock)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            exec(compile(ast.Module([node], []), "hd-epic-vqa-eval", "exec"), known)
    args = SimpleNamespace(dataset_orig_res=1408)
    methods = {name: known[name] for name in names[:-1]}
    model: Any = type("Model", (), {**methods, "config": {"answer_only": False}, "args": args})()
    questions = folder / "hd-epic-annotations/vqa-benchmark"
    asked = [
        "".join(f"{name}: <video>" for name in record["inputs"]) + model.formulate_question(record)[0]
        for file in sorted(questions.glob("*.json"))
        for record in json.loads(file.read_text()).values()
    ]
    return asked, ours("hd_epic", questions)


def main(arguments: Sequence[str]) -> int:
    folder, drawn, num_different = Path(arguments[0]), random.Random(0), 0
    for name, theirs, own in rules(folder):
        texts = [
            "".join(drawn.choice(BITS) + drawn.choice(("", "", " ")) for _ in range(drawn.randint(0, 7)))
            for _ in range(NUM_TEXTS)
        ]
        different = [text for text in texts if theirs(text) != own(text)]
        print(f"{name}: {len(different)} of {NUM_TEXTS:,} replies are scored otherwise", *different[:3])
        num_different += len(different)
    for name, theirs, own in prompts(folder):
        different = [text for text, other in zip(theirs, own, strict=True) if text != other]
        print(f"{name}: {len(different)} of {len(theirs):,} prompts differ", *different[:1])
        num_different += len(different)
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
