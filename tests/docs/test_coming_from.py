"""The page for people who come from trl, against trl's own settings; ours are checked in test_names.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import TrainingArguments
from trl import GRPOConfig

from grpo.config.foreign import our_name
from grpo.config.load import Config
from grpo.config.texts import keys_of
from tests.support import pages, tiny

PAGE = tiny.ROOT / "docs" / "coming_from.md"
OWN_WORDS = {"output_dir", "max_steps"}
"""Settings without a default that could be the same."""


def trl_fields() -> dict[str, Any]:
    return {each.name: None if each.default is MISSING else each.default for each in fields(GRPOConfig)}


def trl_rows() -> list[tuple[list[str], list[str], str]]:
    """trl's names, ours, and the note of each row of the first table."""
    section = PAGE.read_text().split("## From TRL")[1].split("### ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [
        (re.findall(r"`(\w+)`", left), re.findall(r"`([\w.]+)`", right), note.strip(" |"))
        for left, right, note in rows
    ]


def test_every_name_of_trl_is_a_field_of_its_config() -> None:
    names = [name for left, _, _ in trl_rows() for name in left]
    assert len(names) > 40 and {*names} <= trl_fields().keys()


def test_every_field_that_trl_adds_to_transformers_own_is_on_the_page() -> None:
    added = trl_fields().keys() - {each.name for each in fields(TrainingArguments)}
    assert added <= {code.text for code in pages.inline_code(PAGE)}


def our_defaults(left: list[str], right: list[str]) -> list[Any]:
    """What ours are of the settings that trl has these names for."""
    config = OmegaConf.structured(Config)
    ours = [OmegaConf.select(config, key) for key in right]
    return [*ours[0]] if len(ours) < len(left) else ours  # `betas` are two numbers


def test_defaults_that_differ_from_trls_are_those_on_the_page_each_with_its_reason() -> None:
    section = PAGE.read_text().split("### Defaults that differ")[1].split("### ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    said = {name.strip("`"): (trls.strip("`"), ours.strip("`")) for name, trls, ours, _ in rows}
    assert all(len(reason) > 10 for *_, reason in rows)
    defaults = trl_fields()
    found = {
        name: (str(defaults[name]), str(ours))
        for left, right, _ in trl_rows()
        for name, ours in zip(left, our_defaults(left, right), strict=True)
        if ours != defaults[name] and name not in OWN_WORDS
    }
    assert found == said


@pytest.mark.parametrize(("left", "right", "note"), trl_rows(), ids=lambda value: str(value)[:40])
def test_a_row_without_a_note_has_trls_default(left: list[str], right: list[str], note: str) -> None:
    if note or {*left} & OWN_WORDS:
        return
    defaults = trl_fields()
    assert our_defaults(left, right) == [defaults[name] for name in left]


def renamed() -> Iterator[tuple[str, str, list[str]]]:
    """Each name on the page that is no section here, with its project and what the project's rows have beside it."""
    sections = [each.name for each in fields(Config)]
    for section in PAGE.read_text().split("\n## ")[1:]:
        ours: dict[str, list[str]] = {}
        for line in section.splitlines():
            if line.startswith("| `"):
                left, right = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")[:2])
                for name in (each.split()[0].strip("-") for each in left):
                    ours.setdefault(name, []).extend(key.partition("=")[0] for key in right)
        project = section.split("\n")[0]
        yield from ((project, name, keys) for name, keys in ours.items() if name not in sections)


@pytest.mark.parametrize(("project", "name", "ours"), renamed(), ids=str)
def test_a_name_of_the_page_is_answered_with_ours(project: str, name: str, ours: list[str]) -> None:
    answer = our_name(name, keys_of(Config)) or name
    assert answer.partition("=")[0].replace("NAME", "accuracy") in ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("worker.actor.optim.lr", "optim.lr"),
        ("worker.rollout.n", "rollout.group_size"),
        ("worker.actor.model.model_path", "model.path"),
        ("data.rollout_batch_size", "optim.prompts_per_step"),
        ("algorithm.kl_coef", "loss.beta"),
        ("trainer.total_epochs", "num_steps"),
        ("batch_size", "optim.prompts_per_step"),
        ("vllm_mode", "rollout.engine"),
        ("vllm_server_base_url", "rollout.servers"),
        ("nothing.of_the_kind", None),
    ],
)
def test_names_of_easyr1_and_common_ones_are_answered_with_ours(name: str, ours: str | None) -> None:
    assert our_name(name, keys_of(Config)) == ours
