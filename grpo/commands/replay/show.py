"""The report of a replay for people: as Markdown, which is also what the terminal shows, and as one HTML page.

Completions hold markup and scripts, some of them because a policy found out that it pays. The page has no script and
asks the network for nothing; whatever its template prints is escaped, and its policy forbids what would pass that
nevertheless.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Cell = str | float | None
"""Text, or a figure that is shown as a number, on the page in front of a colour that tells its sign and size."""

LINE_CHARACTERS, PAGE_CHARACTERS = 160, 4000
"""The lengths up to which a completion is shown in a line of text, and on the page."""

REWARD_HEAD = (
    "reward", "weight", "mean", "in the run", "std", "p10", "median", "p90", "adds", "flat", "none", "failed"
)  # fmt: skip
WHERE_HEAD = (
    "completions", "", "number", "share", "of what the run raised", "of what is raised", "mean advantage"
)  # fmt: skip
SENTENCES = (
    "Groups without signal (all totals equal): {run} in the run, {replay} here ({lost} lose it, {won} gain it).",
    "Order inside the {groups_compared} groups with signal in both: Kendall's tau {kendall_tau}; another best "
    "completion in {best_changed_frac}.",
    "Advantages: correlation with the run's {advantage_correlation}, mean change {mean_abs_change}; {turned_up_frac} "
    "of the completions are raised and were not, {turned_down_frac} are lowered and were not.",
)
CORRELATIONS = {
    "within": "Correlation inside groups, which is what the update sees",
    "overall": "Correlation over all completions",
}
EXAMPLES = {
    "gain_most": "What gains most: the largest advantages",
    "wrong_but_raised": "Wrong answers that are raised",
    "risen_most": "What the run would have raised more under this reward set",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report, for the text and the page alike; what it does not have is empty."""

    title: str
    notes: Sequence[str] = ()
    table: Sequence[Sequence[Cell]] = ()
    """Rows of cells, of which the first is the head."""
    warnings: Sequence[str] = ()
    examples: Sequence[tuple[str, Mapping[str, Any]]] = ()
    """Completions, some with their question, each behind a line of its figures."""


def markdown(report: Mapping[str, Any], *, num_examples: int) -> str:
    """The report as text, with some examples of each kind."""
    blocks = [block for section in sections(report) for block in _blocks(section, num_examples)]
    return "\n\n".join(["# " + blocks[0].removeprefix("## "), *blocks[1:]])


def page(report: Mapping[str, Any]) -> str:
    """The report as a whole HTML page."""
    histograms = {reward["name"]: reward["histogram"] for reward in report["rewards"]}
    return TEMPLATES.get_template("page.html").render(
        sections=list(sections(report)),
        histograms=histograms | {"(total)": report["totals"]["histogram"]},
        max_characters=PAGE_CHARACTERS,
    )


def sections(report: Mapping[str, Any]) -> Iterator[Section]:
    """All of the report but the distributions."""
    first, last = report["steps"]
    rewards = " ".join(report["configs"]) or "the run's own"
    yield Section(
        title=f"Replay of {report['run_dir']}",
        notes=[
            f"{report['num_rollouts']} completions in {report['num_groups']} groups of {report['num_steps']} steps "
            f"({first} to {last}); rewards: {shown(rewards, 1000)}",
            *_sentences(report),
        ],
        table=[REWARD_HEAD, *_reward_rows(report)],
        warnings=[
            f"{name} failed on {failures['count']} completions, which have no total: {shown(reason, 300)} ({where})"
            for name, failures in report["failures"].items()
            for reason, where in failures["reasons"].items()
        ],
    )
    names = report["correlations"]["names"]
    for kind, title in CORRELATIONS.items():
        rows = [(name, *row) for name, row in zip(names, report["correlations"][kind], strict=True)]
        yield Section(title=title, table=[("", *names), *rows])
    yield Section(
        title="Where the advantage goes",
        notes=[
            "A kind whose share of what is raised exceeds its share of completions is what the policy is pushed to."
        ],
        table=[WHERE_HEAD, *map(_where_row, report["where"])],
    )
    repeated = report["examples"]["repeated"]
    yield Section(
        title="Texts that came more than once, by their share of all that is raised",
        notes=[] if repeated else ["None."],
        examples=[(_repeat_facts(each), {"completion": each["completion"]}) for each in repeated],
    )
    for kind, title in EXAMPLES.items():
        if examples := report["examples"][kind]:
            yield Section(title=title, examples=[(_facts(each), each) for each in examples])


def _sentences(report: Mapping[str, Any]) -> list[str]:
    """What changes for learning, against the run's own totals."""
    figures = report["no_signal"] | report["ranking"]
    shares = {*report["no_signal"], *(name for name in figures if name.endswith("_frac"))}
    shown = {name: (percent if name in shares else number)(value) for name, value in figures.items()}
    return [text.format(**shown | {"groups_compared": figures["groups_compared"]}) for text in SENTENCES]


def _reward_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each reward, and one for the total."""
    for reward in report["rewards"]:
        weights = [number(weight) for weight in reward["weight"]]
        shares = [percent(reward[key]) for key in ("flat_frac", "abstained_frac", "failed_frac")]
        figures = _figures(reward["values"], reward["run_values"] or {"mean": None})
        weight = weights[0] if len({*weights}) == 1 else " to ".join(weights)
        yield (reward["name"], weight, *figures, number(reward["adds"]), *shares)
    figures = _figures(report["totals"]["replay"], report["totals"]["run"])
    yield ("(total)", "", *figures, "", percent(report["no_signal"]["replay"]), "", "")


def _figures(values: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    spread = [values[key] for key in ("std", "p10", "median", "p90")]
    return [number(figure) for figure in (values["mean"], run["mean"], *spread)]


def _where_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (percent(row[key]) for key in ("share_of_completions", "run_share", "replay_share"))
    return (row["feature"], row["bucket"], str(row["num"]), *shares, number(row["mean_advantage"]))


def _repeat_facts(example: Mapping[str, Any]) -> str:
    return (
        f"{percent(example['share'])} of what is raised, {example['times']} times "
        f"({percent(example['share_of_completions'])}) in {example['groups']} groups, right in "
        f"{percent(example['right_frac'])}"
    )


def _facts(example: Mapping[str, Any]) -> str:
    """A completion's figures in one line."""
    rewards = ", ".join(f"{name} {number(value)}" for name, value in example["rewards"].items())
    right = {None: "", 0.0: ", wrong", 1.0: ", right"}[example["right"]]
    return (
        f"{percent(example['share_of_step'])} of step {example['step']}, advantage {number(example['advantage'])} (in "
        f"the run {number(example['run_advantage'])}), {rewards}{right}, {number(example['tokens'])} tokens, "
        f"{number(example['moments'])} moments, {shown(example['sample_id'], 60)}"
    )


def _blocks(section: Section, num_examples: int) -> Iterator[str]:
    """A section's paragraphs in Markdown."""
    yield f"## {cell(section.title)}"
    yield from map(cell, section.notes)
    yield from (f"**{cell(warning)}**" for warning in section.warnings)
    if section.table:
        yield table(section.table)
    for facts, example in section.examples[:num_examples]:
        question = [f"Q: {example['question']} ({example['answer']})"] if "question" in example else []
        # Indented blocks, in which nothing is markup.
        lines = [f"      {shown(line, LINE_CHARACTERS)}" for line in (*question, example["completion"])]
        yield f"- {cell(facts)}:\n\n" + "\n".join(lines)


def table(rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table whose columns are lined up for the terminal too."""
    lines = [[cell(each) if isinstance(each, str) else number(each) for each in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([padded[0], "| " + " | ".join("-" * width for width in widths) + " |", *padded[1:]])


def cell(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    for mark in "\\`*<[|":
        text = text.replace(mark, "\\" + mark)
    return shown(text, 1000)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def percent(frac: float | None) -> str:
    return "-" if frac is None else f"{100 * frac:.3g} %"


def shown(text: str, characters: int) -> str:
    """Text in one line, cut, with what can't be printed or would turn the line around spelt out."""
    line = " ".join(text.split())
    cut = f" ... ({len(text)} characters)" if len(line) > characters else ""
    return spelt(line[:characters]) + cut


def spelt(text: str, keep: str = "") -> str:
    """Text with the code in place of each control, half surrogate, and change of the direction of writing."""
    return "".join(f"\\u{ord(each):04x}" if _is_unsafe(each) and each not in keep else each for each in text)


def _is_unsafe(character: str) -> bool:
    turns = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in turns
    )


def visible(value: Any) -> Any:
    """A value as templates print it, before it is escaped: control characters spelt out in what is no markup yet."""
    return spelt(value, keep="\n\t") if type(value) is str else value


def colour(correlation: float) -> str:
    """Blue for a positive one, orange for a negative one, the fuller the stronger."""
    return (
        f"rgb({'59 125 216' if correlation > 0 else '224 138 43'} / {min(abs(correlation), 1.0) * 0.6:.2f})"
    )


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"number": number, "percent": percent, "colour": colour}
