"""Data on a page: whatever they hold, a browser gets them back as they were, and nothing in them is a script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from grpo.report.page_files import PAGE, data_script, finite, short, write_data, write_page
from rewards.hostile import COMPLETIONS

ATTACKS = [
    *COMPLETIONS.values(),
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>&lt;",
    "\u2028\u2029\x00\x1b",
    "'\"`${alert(1)}\\",
    "\ud800",
]


def read_back(script: str) -> tuple[str, object]:
    """The name and the value that a data script assigns, as JavaScript and then JSON.parse read them."""
    found = re.fullmatch(r'reportData\[("(?:[^"\\]|\\.)*")\] = ("(?:[^"\\]|\\.)*");\n', script)
    assert found
    return json.loads(found[1]), json.loads(json.loads(found[2]))


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_a_data_script_assigns_one_string_whatever_it_holds(text: str):
    value = {"text": text, "__proto__": [text], text: None}
    script = data_script(text, value)
    assert script.isascii() and not re.search(r"[<>&\x00-\x09\x0b-\x1f]", script)
    assert read_back(script) == (text, value)


def test_a_number_that_json_lacks_is_refused_and_finite_leaves_it_out():
    with pytest.raises(ValueError, match="JSON"):
        data_script("x", float("nan"))
    assert finite({"a": [1.5, float("inf")], "b": (float("nan"), "x")}) == {
        "a": [1.5, None],
        "b": [None, "x"],
    }


def test_a_number_is_cut_to_its_digits():
    assert [short(each) for each in (1.23456789, 123456.0, 0.0, None, float("nan"))] == [
        1.2346,
        123460.0,
        0.0,
        None,
        None,
    ]


def test_the_page_names_the_files_that_are_beside_it_and_no_others(tmp_path: Path):
    page = write_page(tmp_path / "report")
    text = page.read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert {*named} == {
        str(file.relative_to(PAGE)) for file in PAGE.rglob("*") if file.suffix in (".js", ".css", ".svg")
    }
    assert all((tmp_path / "report" / name).is_file() for name in named)
    assert "<script>" not in text and "style=" not in text and not re.search(r"\son\w+=", text)
    assert "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'" in text


def test_the_scripts_make_no_markup_and_no_code_from_text():
    makes = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser"
    )
    for file in PAGE.glob("*.js"):
        assert not makes.search(file.read_text()), file


def test_a_data_file_is_written_under_its_name(tmp_path: Path):
    write_data(tmp_path, "0/rollouts_000001", {"a": 1})
    assert read_back((tmp_path / "data" / "0" / "rollouts_000001.js").read_text()) == (
        "0/rollouts_000001",
        {"a": 1},
    )
