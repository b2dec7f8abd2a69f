"""The page and the text of a replay: whatever completions hold, it is shown and never acts."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.replay import command as replay
from grpo.commands.replay.show import PAGE_CHARACTERS, TEMPLATES, cell, markdown, page, shown
from rewards.hostile import COMPLETIONS
from tests.support import tiny
from tests.support.browser import executable
from tests.support.stored_runs import scored, write_run

ATTACKS = [
    *COMPLETIONS.values(),
    "<script>document.title = 'hacked'</script>",
    "</pre></details><img src=x onerror=\"document.title='hacked'\">",
    "\"'><svg onload=alert(1)>&lt;b&gt;&#60;i&#62;",
    "</style><style>body{display:none}</style><!-- <base href='//evil.example'>",
    "\ud800 half a pair, \u202e turned, \u2066 and kept",
]
TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "div", "table", "thead", "tbody", "tr",
    "th", "td", "figure", "figcaption", "svg", "rect", "line", "text", "details", "summary", "pre", "ol", "ul", "li",
    "small",
}  # fmt: skip


class Reader(HTMLParser):
    """The elements of a page, their attributes, and the text of what stands in `pre`."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[tuple[str, str | None]] = set()
        self.blocks: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= set(attrs)
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "pre":
            self.blocks.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= set(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.blocks[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every attack as a completion that is paid, in a run whose other texts are hostile too."""
    texts = [text.encode("utf-8", "replace").decode() for text in ATTACKS]  # as a tokenizer would give them
    groups = [
        scored(
            ["nothing", text],
            [0.0, 1.0],
            tiny.sample(
                f"<i id=x>{number}", question="<script>q</script>", options=("<q>", "&amp;"), answer="<q>A"
            ),
        )
        for number, text in enumerate(texts)
    ]
    folder = write_run(
        tmp_path_factory.mktemp("<u>page") / "run", {step: [group] for step, group in enumerate(groups)}
    )
    (folder.parent / "plugin.py").write_text(
        "from rewards import reward\n\n@reward\ndef long(rollout):\n"
        "    if 'hacked' in rollout.text:\n        raise ValueError('<script>alert(1)</script>')\n"
        "    return float(rollout.text != 'nothing')\n"
    )
    return replay.replay(folder, [f"rewards.<q>x|y</q>.fn={folder.parent}/plugin.py:long"])


def read(report: dict[str, Any]) -> Reader:
    reader = Reader()
    reader.feed(page(report))
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_holds_its_own_elements_only(report: dict[str, Any]) -> None:
    reader = read(report)
    assert set(reader.tags) <= TAGS and reader.tags["style"] == 1 and reader.tags["h1"] == 1
    assert {name for name, _ in reader.attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "style", "width", "height", "x", "y", "x1", "x2",
        "y1", "y2", "role", "stroke", "text-anchor", "type",
    }  # fmt: skip


def test_the_page_asks_the_network_for_nothing(report: dict[str, Any]) -> None:
    reader = read(report)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes
    assert "url(" not in page(report) and "@import" not in page(report).partition("</style>")[0]


def printed(text: str) -> str:
    """A text as the page's template prints it."""
    return TEMPLATES.from_string("{{ text }}").render(text=text)


def test_every_attack_is_shown_as_text() -> None:
    acting = re.compile(r"[<>\"']|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
    for attack in ATTACKS:
        assert acting.search(printed(attack)) is None
        reader = Reader()
        reader.feed(f"<pre>{printed(attack)}</pre>")
        reader.close()
        assert reader.tags == {"pre": 1}
    assert (
        printed("<a href='x'>\x1b\u202e\ud800\n\té") == "&lt;a href=&#39;x&#39;&gt;\\u001b\\u202e\\ud800\n\té"
    )


def test_completions_stand_on_the_page_with_their_markup(report: dict[str, Any]) -> None:
    blocks = read(report).blocks
    shown_texts = {each["completion"] for several in report["examples"].values() for each in several}
    assert any("<" in text for text in shown_texts)
    for text in shown_texts:
        assert any(block.replace("\r", "\n")[:100] == html_text(text)[:100] for block in blocks), text[:100]


def html_text(text: str) -> str:
    """What a parser gives back of an escaped text."""
    return "".join(c if c in "\n\t" else shown(c, 1) or c for c in text[:PAGE_CHARACTERS])


def test_a_reward_set_that_pays_nothing_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {1: [scored(["x", "y"], [0.0, 0.0])]})
    report = replay.replay(folder, [])
    assert read(report).tags["table"] > 0
    assert "all totals equal): 100 % in the run, 100 % here" in page(report)


def test_markdown_stays_in_its_lines_and_cells(report: dict[str, Any]) -> None:
    text = markdown(report, num_examples=12)
    assert "\x1b" not in text and "\u202e" not in text and "\r" not in text and "\u2028" not in text
    for line in text.splitlines():
        assert not re.search(r"(?<!\\)<\w", line) or line.startswith("      "), line
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) in (13, 9, 8), line


def test_a_text_in_one_line_says_that_it_is_cut() -> None:
    assert shown("a\n b\tc\x07", 80) == "a b c\\u0007"
    assert shown("word " * 50, 9) == "word word ... (250 characters)"
    assert cell("a|b`<i>*") == "a\\|b\\`\\<i>\\*"


@pytest.mark.slow
def test_a_browser_opens_the_page_and_runs_nothing(report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "replay.html"
    file.write_text(page(report))
    command = [executable(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{file}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>Replay of" in dom and "Where the advantage goes" in dom
    assert "<script" not in dom and "<img" not in dom and dom.count("<style") == 1
