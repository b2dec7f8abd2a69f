"""An evaluation's results: figures as JSON with the manifest, tables as Markdown, and the official submission."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from grpo.benchmarks.answers import is_first
from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer
from grpo.benchmarks.figures import Figures, figures_of, scores_by_id, video_of
from grpo.benchmarks.statistics import Difference, difference
from grpo.run.disk import write_text

BAD = ("unparsed", "truncated", "failed", "unjudged")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What models have answered to a benchmark, scored."""

    benchmark: Benchmark
    prompt: Mapping[str, str]
    """The kind of prompt and the digest of its wording."""
    num_missing: int
    paths: Mapping[str, str]
    """The models' folders by their names."""
    folders: Mapping[str, str]
    """The folders of the answers."""
    scored: Mapping[str, Sequence[ScoredAnswer]]
    timings: Mapping[str, Mapping[str, float | None]]
    manifest: Mapping[str, Any]

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """Each model's figures."""
        return {
            name: {**figures_of(self.benchmark, scored), **self.timings[name]}
            for name, scored in self.scored.items()
        }

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Each further model's score minus the first one's."""
        first, *others = self.scored.values()
        own = scores_by_id(first)
        videos = [video_of(each) for each in first if each.sample.id in own and is_first(each.answer)]
        scores = [scores_by_id(other) for other in others]
        return {
            name: difference([other[id] for id in own], [*own.values()], videos)
            for name, other in zip([*self.scored][1:], scores, strict=True)
            if own
        }


def write_results(folder: Path, results: Results) -> None:
    """Write `results.json`, `results.md` and, where the benchmark has one, `submission/MODEL/`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(as_json(results), indent=2) + "\n")
    write_text(folder / "results.md", as_markdown(results) + "\n")
    for name, path, content in submissions(results):
        to = folder / "submission" / name / path
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, content)


def submissions(results: Results) -> Iterator[tuple[str, str, str]]:
    """Each model's submission: its name, the file's and the content."""
    if results.benchmark.submission is None:
        return
    for name, scored in results.scored.items():
        first = [each for each in scored if is_first(each.answer)]
        for path, content in results.benchmark.submission(first).items():
            yield name, path, content


def as_json(results: Results) -> dict[str, Any]:
    """All results in plain values."""
    benchmark = results.benchmark
    return {
        "benchmark": benchmark.name,
        "notes": benchmark.notes,
        "sources": benchmark.sources,
        "prompt": results.prompt,
        "num_missing": results.num_missing,
        "models": {
            name: {"path": results.paths[name], "answers": results.folders[name], **figures}
            for name, figures in results.figures.items()
        },
        "differences": {name: asdict(each) for name, each in results.differences.items()},
        "manifest": results.manifest,
    }


def as_markdown(results: Results) -> str:
    """The tables: scores, differences, groups, and what stands beside them."""
    parts = [
        f"# {results.benchmark.name}",
        f"Prompt: {results.prompt['kind']} ({results.prompt['digest']}). {_count(results)}",
        score_table(results),
        difference_table(results),
        *group_tables(results),
        beside_table(results),
        FOOTNOTE,
        results.benchmark.notes,
    ]
    return "\n\n".join(part for part in parts if part)


FOOTNOTE = """\
Ours: strict, over all questions; an answer that can't be read is wrong, and counted apart. Official: the benchmark's
own rule. Intervals: 95 %, clustered by video (sandwich, Student's t); of differences a paired bootstrap over videos.
p: a permutation test over videos; McNemar's: exact, of single questions, where each score is 0 or 1."""


def _count(results: Results) -> str:
    figures = next(iter(results.figures.values()))
    missing = f", {results.num_missing} without a video are left out" if results.num_missing else ""
    unpublished = figures["num_unpublished"]
    asked = f", {unpublished} more without a published answer" if unpublished else ""
    return f"n = {figures['num_questions']} questions about {figures['num_videos']} videos{missing}{asked}."


def score_table(results: Results) -> str:
    """The models' scores, with what could not be read, asked or judged."""
    metrics = sorted({name for figures in results.figures.values() for name in figures["metrics"]})
    rows = [
        [
            name,
            _number(figures["score"]),
            _interval(figures["score_interval"]),
            _number(figures["official"]),
            _interval(figures["official_interval"]),
            *(_number(figures["metrics"].get(metric)) for metric in metrics),
            *(str(figures["outcomes"].get(outcome, 0)) for outcome in BAD),
        ]
        for name, figures in results.figures.items()
    ]
    return table(["model", "ours", "95 %", "official", "95 %", *metrics, *BAD], rows)


def difference_table(results: Results) -> str:
    """The differences to the first model; empty for one alone."""
    if not results.differences:
        return ""
    first = next(iter(results.scored))
    rows = [
        [
            name,
            _number(each.mean, sign=True),
            _interval(each.interval, sign=True),
            "–" if each.only_first is None else f"{each.only_first} / {each.only_second}",
            f"{each.permutation_p_value:.3g}",
            "–" if each.p_value is None else f"{each.p_value:.3g}",
        ]
        for name, each in results.differences.items()
    ]
    return table(["model", f"minus {first}", "95 %", f"right alone: it / {first}", "p", "McNemar's p"], rows)


def group_tables(results: Results) -> Iterator[str]:
    """A table for each column that the benchmark is broken down by."""
    for column in results.benchmark.groups:
        groups = [figures["groups"][column] for figures in results.figures.values()]
        values = sorted({value for group in groups for value in group})
        rows = [
            [
                value,
                str(max(group[value]["num_questions"] for group in groups if value in group)),
                *(_both(group.get(value)) for group in groups),
            ]
            for value in values
        ]
        yield table([column, "n", *(f"{name}: ours, official" for name in results.figures)], rows)


def beside_table(results: Results) -> str:
    """What stands beside the scores: baselines, samples, moments, letters and costs; rows that have a value."""
    named = {name: dict(_beside(figures)) for name, figures in results.figures.items()}
    labels = dict.fromkeys(label for figures in named.values() for label in figures)
    rows = [[label, *(figures.get(label, "–") for figures in named.values())] for label in labels]
    return table(["", *named], rows)


def _beside(figures: Figures) -> Iterator[tuple[str, str]]:
    baselines, costs = figures["baselines"], figures["costs"]
    if "constant" in baselines:
        yield f"always {baselines['constant_answer'][:20]!r}", _number(baselines["constant"])
    if "chance" in baselines:
        yield "chance", _number(baselines["chance"])
    for key, rows in ROWS.items():
        if key in figures:
            yield from rows(figures[key])
    for key, label in (
        ("mean_frames", "frames"),
        ("mean_tokens", "tokens"),
        ("mean_prompt_tokens", "prompt tokens"),
    ):
        yield f"mean {label}", _number(costs[key], digits=1)
    for key, label in (("items_per_s", "questions per second"), ("engine_busy_frac", "engine busy")):
        if figures.get(key) is not None:
            yield label, _number(figures[key], digits=2)


def _blind_rows(blind: Figures) -> Iterator[tuple[str, str]]:
    yield "blind (black frames)", f"{_number(blind['score'])} ({_interval(blind['score_interval'])})"
    yield "drop without frames", _number(blind["drop"], sign=True)


def _sample_rows(samples: Figures) -> Iterator[tuple[str, str]]:
    yield f"majority of {samples['num_samples']}", _number(samples["majority"])
    for k, value in samples["pass_at_k"].items():
        yield f"pass@{k}", _number(value)
    yield "calibration error of the majority", _number(samples["calibration_error"])


def _moment_rows(moments: Figures) -> Iterator[tuple[str, str]]:
    yield "key moment hit", _number(moments["hit"])
    yield "key moment IoU", _number(moments["iou"])


def _letter_rows(letters: Figures) -> Iterator[tuple[str, str]]:
    yield "answered letters", _letters(letters["answered"])
    yield "right letters", _letters(letters["right"])
    if "place_std" in letters:
        yield "std of the score by place", _number(letters["place_std"])
        yield "right in all rotations", _number(letters["always_right"])


ROWS: Mapping[str, Callable[[Figures], Iterator[tuple[str, str]]]] = {
    "blind": _blind_rows,
    "samples": _sample_rows,
    "moments": _moment_rows,
    "letters": _letter_rows,
}
"""The rows on what only some evaluations have."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _letters(counts: Mapping[str, int]) -> str:
    return " ".join(f"{letter} {count}" for letter, count in counts.items())


def _both(figures: Figures | None) -> str:
    return "–" if figures is None else f"{_number(figures['score'])}, {_number(figures['official'])}"


def _number(value: float | None, *, sign: bool = False, digits: int = 3) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(interval: Sequence[float] | None, *, sign: bool = False) -> str:
    return "–" if interval is None else " to ".join(_number(each, sign=sign) for each in interval)
