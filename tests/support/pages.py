"""What the documentation's pages hold: code blocks, inline code, links and tables, as a Markdown parser reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support import tiny

PAGES = (
    tiny.ROOT / "README.md",
    tiny.ROOT / "CONTRIBUTING.md",
    *sorted((tiny.ROOT / "docs").glob("*.md")),
    tiny.ROOT / "tests" / "benchmarks" / "RESULTS.md",
)
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")
INCLUDED = re.compile(r'--8<-- "(.+)"\n')


@dataclass(frozen=True, slots=True)
class Code:
    """A code block, or code within a line."""

    text: str
    place: str
    """The page, and for a block its line."""
    language: str = ""

    @property
    def file_name(self) -> str | None:
        """The name that a block's first line gives it, as in `# my_run.yaml`."""
        found = FILE_NAME.match(self.text)
        return found[1] if found else None


def name_of(page: Path) -> str:
    return str(page.relative_to(tiny.ROOT))


def blocks(page: Path, language: str) -> list[Code]:
    """The page's code blocks of a language; one that includes a file of docs/ holds that file."""
    return [
        Code(
            text=INCLUDED.sub(lambda found: (tiny.ROOT / "docs" / found[1]).read_text(), token.content),
            place=f"{name_of(page)}:{token.map[0] + 1 if token.map else 0}",
            language=language,
        )
        for token in tokens(page)
        if token.type == "fence" and language_of(token) == language
    ]


def languages(page: Path) -> set[str]:
    """The languages of the page's code blocks."""
    return {language_of(token) for token in tokens(page) if token.type in ("fence", "code_block")}


def language_of(token: Token) -> str:
    """The language of a code block, which may be written `{ .python }` to keep a formatter away."""
    return token.info.strip("{} ").removeprefix(".")


def inline_code(page: Path) -> list[Code]:
    return [Code(token.content, name_of(page)) for token in inline(page) if token.type == "code_inline"]


def links(page: Path) -> list[str]:
    """Where the page's links and pictures lead."""
    found = [token.attrs.get("href") or token.attrs.get("src") for token in inline(page)]
    return [str(target) for target in found if target]


def table_rows(page: Path) -> list[list[str]]:
    """The rows of the page's tables, without their heads; each cell as its Markdown."""
    rows: list[list[str]] = []
    for before, token in pairwise(tokens(page)):
        if token.type == "tr_open":
            rows.append([])
        elif before.type == "td_open":
            rows[-1].append(token.content)
    return [row for row in rows if row]


def commands(block: Code) -> list[str]:
    """The commands of a shell block, continuation lines joined."""
    return [line for line in re.sub(r"\s*\\\n\s*", " ", block.text).splitlines() if line]


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or []


@lru_cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text())
