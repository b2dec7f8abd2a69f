"""The report of a replay as Markdown, which is also what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo.commands.replay.sections import Cell, Section, number, sections, shown

CHARACTERS = 160
"""The length up to which a completion is shown in a line; the page shows more."""


def markdown(report: Mapping[str, Any], *, num_examples: int) -> str:
    """The report with some examples of each kind."""
    blocks = [block for section in sections(report) for block in _blocks(section, num_examples)]
    return "\n\n".join(["# " + blocks[0].removeprefix("## "), *blocks[1:]])


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


def _blocks(section: Section, num_examples: int) -> Iterator[str]:
    yield f"## {cell(section.title)}"
    yield from map(cell, section.notes)
    yield from (f"**{cell(warning)}**" for warning in section.warnings)
    if section.table:
        yield table(section.table)
    for facts, example in section.examples[:num_examples]:
        question = f"Q: {example['question']} ({example['answer']})"
        lines = [question] if section.has_questions else []
        # Indented blocks, in which nothing is markup.
        block = "\n".join(f"      {shown(line, CHARACTERS)}" for line in (*lines, example["completion"]))
        yield f"- {cell(facts)}:\n\n{block}"
