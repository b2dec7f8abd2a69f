"""What the pages name exists: files, settings, options, metrics, and the lists of what there is are complete."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from grpo.commands.__main__ import COMMANDS
from grpo.config.evaluate import EvaluateConfig
from grpo.config.load import Config, read_layers
from grpo.data import READERS
from grpo.policy.families import FAMILIES
from rewards.scoring.loading import BUILTINS
from rewards.scoring.specs import RewardSpec
from tests.support import pages, runs, tiny

DOCS = tiny.ROOT / "docs"
PATH = re.compile(r"(?:grpo|rewards|configs|launch|tests|docs)/[\w./*-]*")
SECTIONS = [each.name for each in fields(Config)]
KEY = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.\w+)+(?:=.*)?")
METRIC = re.compile(r"[a-z]+(?:/(?:[\w*]+|<\w+>))+|loss")
KINDS = (
    "loss", "reward", "rewards", "completion", "groups", "policy", "sampler", "optim", "tokens", "time", "media",
    "eval",
)  # fmt: skip
"""What the name of a metric begins with."""
COLUMNS = ("rewards/<name>", "parts/<name>")
"""Of the Parquet files of rollouts."""
OPTION = re.compile(r"--[a-z][a-z-]+")


def mentions(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Inline code of that form, with its page."""
    return [
        (code.text, code.place)
        for page in pages.PAGES
        for code in pages.inline_code(page)
        if pattern.fullmatch(code.text)
    ]


def first_cells(page: str) -> set[str]:
    """All code in the first cells of a page's tables."""
    rows = pages.table_rows(DOCS / page)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def test_every_file_that_a_page_names_is_there() -> None:
    assert mentions(PATH)
    for name, page in mentions(PATH):
        if not METRIC.fullmatch(name) or name.endswith("/"):
            assert [*tiny.ROOT.glob(name)], f"{page}: {name}"


def test_every_link_leads_somewhere() -> None:
    for page in pages.PAGES:
        for target in pages.links(page):
            if "://" not in target and not target.startswith("#"):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


@lru_cache
def settings(root: type) -> set[str]:
    """Every key of a config with its dots, sections included. root: its type."""
    return set(dotted(OmegaConf.to_container(OmegaConf.structured(root))))


def dotted(value: object, prefix: str = "") -> Iterator[str]:
    for name, part in value.items() if isinstance(value, dict) else ():
        yield f"{prefix}{name}"
        yield from dotted(part, f"{prefix}{name}.")


def test_every_setting_that_a_page_names_exists() -> None:
    of_a_reward = {each.name for each in fields(RewardSpec)}
    of_others = first_cells("coming_from.md")
    # `eval.py` is a file of a benchmark's.
    ours = [
        (text, page) for text, page in mentions(KEY) if text not in of_others and not text.endswith(".py")
    ]
    assert len(ours) > 100
    for text, page in ours:
        key, equals, _ = text.partition("=")
        # The pages on evaluations name settings of theirs, and some of runs.
        is_of_evaluation = str(page).endswith(("evaluation.md", "benchmarks.md")) and key in settings(
            EvaluateConfig
        )
        root = EvaluateConfig if is_of_evaluation else Config
        section, *parts = key.split(".")
        assert key in settings(root) or (section == "rewards" and parts[1] in of_a_reward), f"{page}: {text}"
        if equals:
            OmegaConf.merge(OmegaConf.structured(root), *read_layers([text], root))


def options_of(command: str) -> set[str]:
    """The options that a command's parser knows."""
    found: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):

            def stop(self: argparse.ArgumentParser, *args: object, **options: object) -> None:
                found.update(self._option_string_actions)
                raise SystemExit(0)

            patch.setattr(argparse.ArgumentParser, name, stop)
        with pytest.raises(SystemExit):
            import_module(COMMANDS[command][0]).main([])
    return found


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("doctor.md", "doctor"),
        ("ablations.md", "sweep"),
        ("replay.md", "replay"),
        ("own_data.md", "annotate"),
    ],
)
def test_every_option_that_a_page_explains_exists(page: str, command: str) -> None:
    shown = {code.text.split()[0] for code in pages.inline_code(DOCS / page) if code.text.startswith("--")}
    assert shown and shown <= options_of(command)


def patterns_of(tree: ast.AST) -> Iterator[str]:
    """The texts of a module that look like metrics, `<>` for what is filled in."""
    nodes = [*ast.walk(tree)]
    inside = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in (node for node in nodes if node not in inside):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "<>" for part in parts)
            if text.split("/")[0] in KINDS and re.fullmatch(r"\w+(/(\w|<>)+)+", text):
                yield text


def test_the_metrics_of_the_code_and_those_of_the_page_are_the_same() -> None:
    """Those of evaluations, whose names are put together from parts, are looked at in a run."""
    trees = [ast.parse(path.read_text()) for path in (tiny.ROOT / "grpo").rglob("*.py")]
    written = {name for tree in trees for name in patterns_of(tree) if not name.startswith("eval/")}
    shown = {name for name in documented_metrics() if not name.startswith("eval/")} - {"loss"}
    for name in written:
        assert any(stands_for(name, each) for each in shown), f"run_folder.md does not explain {name}"
    for each in shown:
        assert any(stands_for(name, each) for name in written), f"nothing writes {each}"


def stands_for(pattern: str, name: str) -> bool:
    """Whether a name, or one with `<...>` in it, is what a pattern gives when it is filled in."""
    return re.fullmatch(pattern.replace("<>", "[^/]+"), name) is not None


def documented_metrics() -> set[str]:
    return {
        name
        for name in first_cells("run_folder.md")
        if METRIC.fullmatch(name) and name.split("/")[0] in KINDS
    }


def test_every_metric_that_a_page_names_is_explained() -> None:
    shown = documented_metrics()
    for text, page in mentions(METRIC):
        if text.split("/")[0] in KINDS and "*" not in text and text not in COLUMNS:
            patterns = [re.sub(r"<\w+>", r"[\\w<>]+", name) for name in shown]
            assert any(re.fullmatch(each, text) for each in patterns), f"{page}: {text}"


def test_every_metric_of_a_shipped_sweep_is_explained() -> None:
    patterns = [re.sub(r"<\w+>", r"\\w+", name) for name in documented_metrics()]
    sweeps = [yaml.safe_load(file.read_text()) for file in (tiny.ROOT / "configs" / "sweeps").glob("*.yaml")]
    names = [name for sweep in sweeps for name in (*sweep["metrics"], sweep.get("search", {}).get("metric"))]
    for name in filter(None, names):
        assert any(re.fullmatch(each, name) for each in patterns), name


@pytest.mark.slow
def test_every_metric_of_a_run_is_explained(clips: Path, tmp_path: Path) -> None:
    rows = runs.run(tmp_path / "run", clips, "eval.blind=[blank]", "num_steps=1")
    patterns = [re.sub(r"<\w+>", r"\\w+", name) for name in documented_metrics()]
    for name in {name for row in rows for name in row} - {"step"}:
        assert any(re.fullmatch(each, name) for each in patterns), name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("reward_catalogue.md", set(BUILTINS)),
        (
            "scaling.md",
            {f"launch/accelerate/{path.name}" for path in (tiny.ROOT / "launch/accelerate").iterdir()},
        ),
        (
            "memory.md",
            {f"configs/overlays/{path.name}" for path in (tiny.ROOT / "configs/overlays").iterdir()},
        ),
    ],
)
def test_a_list_of_what_there_is_leaves_nothing_out(page: str, names: set[str]) -> None:
    assert names <= first_cells(page)


def test_the_catalogue_has_no_reward_that_is_none() -> None:
    assert first_cells("reward_catalogue.md") <= BUILTINS.keys()


def test_every_reader_has_its_dataset() -> None:
    cells = {
        name for row in pages.table_rows(DOCS / "datasets.md") for name in re.findall(r"`(\w+)`", row[1])
    }
    assert cells == READERS.keys() - {"jsonl", "synthetic"}


def test_every_family_has_its_row() -> None:
    assert first_cells("models.md") & FAMILIES.keys() == FAMILIES.keys()


def test_every_page_is_on_the_first_one() -> None:
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} == {*pages.links(DOCS / "index.md")}
