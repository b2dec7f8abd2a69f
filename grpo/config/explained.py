"""Every setting with its default, its choices and its meaning, as a config file: what `grpo/train.py --help` prints."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from grpo.config.schema import Config, DatasetConfig
from rewards.scoring.specs import RewardSpec

ENTRIES = {"train": ("-", DatasetConfig), "rewards": ("NAME:", RewardSpec)}
"""The type of what a list or a mapping has, and how an entry begins."""

USAGE = """\
usage: egogrpo train --config_file launch/accelerate/single.yaml CONFIG.yaml ... key=value ...
(--help lists every setting; configs/ has files to start from)"""


def explained(cls: Any = Config, indent: str = "") -> Iterator[str]:
    """The lines on a section's settings."""
    hints, meanings = get_type_hints(cls), _meanings(cls)
    for each in fields(cls):
        about = " ".join([*_choices(hints[each.name]), meanings.get(each.name, "")])
        yield from textwrap.wrap(about, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if is_dataclass(hints[each.name]):
            yield f"{indent}{each.name}:"
            yield from explained(hints[each.name], f"{indent}  ")
        else:
            default = each.default_factory() if each.default is MISSING else each.default  # pyright: ignore
            yield f"{indent}{each.name}: {json.dumps(default)}"
        if each.name in ENTRIES:
            head, entry = ENTRIES[each.name]
            yield f"{indent}  # An entry:"
            yield from (f"{indent}  # {line}" for line in (head, *explained(entry, "  ")))


def _choices(hint: Any) -> list[str]:
    """The values that a setting is one of, as the first words on it."""
    return [f"{' | '.join(get_args(hint))}."] if get_origin(hint) is Literal else []


def _meanings(cls: Any) -> dict[str, str]:
    """The docstring below each field of a class."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for before, node in zip(tree.body, tree.body[1:], strict=False):
            match before, node:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
