"""Every snippet on the pages does what a reader wants from it: configs load, records are read, rewards score."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from grpo.commands.__main__ import main as egogrpo
from grpo.commands.sweeps.plan import load_sweep, plan_runs
from grpo.config.load import load_config
from grpo.data.readers.jsonl import OWN_KEYS, read_jsonl
from rewards.scoring.runner import load_rewards
from tests.support import pages

BASES = ("configs/demo.yaml", "configs/egovlm_3b.yaml")
"""What a page's config is laid over."""
DECORATORS = ("reward", "group_reward")


def snippets(language: str) -> list:
    """The code blocks of a language on all pages, as a test's parameters."""
    found = [block for page in pages.PAGES for block in pages.blocks(page, language)]
    return [pytest.param(block, id=block.place) for block in found]


def reward_names(block: pages.Code) -> Iterator[str]:
    """The functions of a Python snippet that are declared as rewards."""
    for node in ast.parse(block.text).body:
        decorators = getattr(node, "decorator_list", [])
        if isinstance(node, ast.FunctionDef) and {*map(ast.unparse, decorators)} & {*DECORATORS}:
            yield node.name


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("block", snippets("yaml"))
def test_a_config_on_a_page_loads_over_the_shipped_ones(block: pages.Code, tmp_path: Path) -> None:
    file = tmp_path / "snippet.yaml"
    file.write_text(block.text)
    if "arms" in yaml.safe_load(block.text):
        assert plan_runs(load_sweep(str(file)))
        return
    for base in BASES:
        load_rewards(load_config([base, str(file)]).rewards).close()


@pytest.mark.parametrize("block", snippets("json"))
def test_a_record_on_a_page_is_one(block: pages.Code, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(block.text)
    for sample in read_jsonl(file):
        assert not sample.columns.keys() - {*OWN_KEYS}


@pytest.mark.parametrize("block", snippets("python"))
def test_python_on_a_page_compiles_and_finds_what_it_imports(block: pages.Code) -> None:
    tree = ast.parse(block.text)
    compile(tree, block.place, "exec")
    imports: list[ast.stmt] = [
        node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    exec(compile(ast.Module(imports, []), block.place, "exec"), {})


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("block", snippets("python"))
def test_a_reward_on_a_page_passes_the_checker(block: pages.Code) -> None:
    names = [*reward_names(block)]
    assert block.file_name is not None or not names, f"{block.place}: its reward can't be named in a config"
    for name in names:
        assert egogrpo(["check", f"{block.file_name}:{name}"]) == 0


def test_a_file_that_two_pages_show_is_the_same_on_both() -> None:
    texts: dict[str, str] = {}
    for page in pages.PAGES:
        for block in [*pages.blocks(page, "python"), *pages.blocks(page, "yaml")]:
            if block.file_name is not None:
                assert texts.setdefault(block.file_name, block.text) == block.text, block.place
