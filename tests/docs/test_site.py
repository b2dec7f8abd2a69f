"""The documentation as web pages, and the README's promises about itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages, tiny

README = tiny.ROOT / "README.md"
MAX_README_LINES = 180
FETCHED = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?:https?:)?//[^"']+""")


def test_the_pages_build_strictly_and_fetch_nothing(tmp_path: Path) -> None:
    """Strictly: a broken link or anchor, or a page that the navigation lacks, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=tiny.ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = {path.parent.name for path in tmp_path.glob("*/index.html")}
    assert built == {path.stem for path in (tiny.ROOT / "docs").glob("*.md")} - {"index"}
    for page in tmp_path.rglob("*.html"):
        assert not FETCHED.findall(page.read_text()), page


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def lines_of(file: Path, names: list[str]) -> int:
    """How many lines functions have; all of the file's without names."""
    if not names:
        return len(file.read_text().splitlines())
    found: dict[str, int] = {}
    for node in ast.parse(file.read_text()).body:
        methods = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in methods:
            if isinstance(each, ast.FunctionDef):
                found[prefix + each.name] = (each.end_lineno or 0) - each.lineno + 1
    return sum(found[name] for name in names)


def reading_path() -> list[tuple[Path, list[str], int]]:
    """The rows of the README's table: the file, its functions, and how many lines it says they have."""
    rows = [row for row in pages.table_rows(README) if row[-1].startswith("about ")]
    return [
        (
            tiny.ROOT / re.findall(r"\((.+?)\)", where)[0],
            re.findall(r"`([\w.]+)`", what),
            int(lines.removeprefix("about ")),
        )
        for what, where, lines in rows
    ]


@pytest.mark.parametrize(
    ("file", "names", "lines"), reading_path(), ids=lambda value: getattr(value, "name", None)
)
def test_the_reading_path_is_as_long_as_the_readme_says(file: Path, names: list[str], lines: int) -> None:
    counted = lines_of(file, names)
    assert abs(counted - lines) <= max(10, 0.15 * counted), f"{file.name}: {counted} lines"


def test_the_reading_path_as_a_whole_is_as_long_as_the_readme_says() -> None:
    (said,) = re.findall(r"is about (\d+) lines", README.read_text())
    assert abs(sum(lines for _, _, lines in reading_path()) - int(said)) <= 50


def test_the_tree_has_every_folder_and_no_other() -> None:
    (tree,) = [block.text for block in pages.blocks(README, "") if "startup/" in block.text]
    shown = {*re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)}
    packages = {path.parent.name for path in (tiny.ROOT / "grpo").glob("*/__init__.py")}
    assert shown == packages
    for name in re.findall(r"(?<![\w/])(\w+)/", tree):
        assert [*tiny.ROOT.glob(name), *tiny.ROOT.glob(f"*/{name}"), *tiny.ROOT.glob(f"grpo/*/{name}")], name
