"""Settings as they are written, made ready for the schema: what a text means depends on the setting that it is for.

YAML 1.1 takes `20260801_120000` and `010` for numbers and `no` for a boolean. Here every scalar is read as a text, and
stays one where the schema wants a text; OmegaConf makes numbers of the others. Only where the schema says nothing (the
arguments of rewards) does a text count as what YAML 1.2 takes it for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING

from grpo.config.foreign import meant_by
from grpo.config.limits import PATH
from grpo.config.schema import Config
from rewards.scoring.loading import did_you_mean

VALUES: dict[str, Callable[[str], object]] = {
    # With a zero in front it is a name.
    r"[-+]?(0|[1-9]\d*)": int,
    r"[-+]?(\.\d+|\d+\.\d*|(\d+\.?|\d*\.\d+)[eE][-+]?\d+)": float,
    r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)": lambda text: float(text.replace(".", "")),
    r"true|True|TRUE|false|False|FALSE": lambda text: text.lower() == "true",
}
"""What a text without quotes means where no type says it."""


WORDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
"""The types of single values, as messages call them."""


class Plain(str):
    """A text without quotes, which may mean a number."""


NOTHING = Plain("")
"""What stands behind a key without a value: a section that nothing is set in, or `null`."""


class TextLoader(yaml.SafeLoader):
    """A loader of YAML that leaves all scalars texts, apart from `null`, and refuses a key that comes twice."""

    yaml_implicit_resolvers = {
        first: [each for each in resolvers if each[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{min(twice)} is set twice", node.start_mark)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


def _text(_: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return node.value if node.style else Plain(node.value)


def _nothing(_: yaml.SafeLoader, node: yaml.ScalarNode) -> str | None:
    return None if node.value else NOTHING


TextLoader.add_constructor("tag:yaml.org,2002:str", _text)
TextLoader.add_constructor("tag:yaml.org,2002:null", _nothing)


class NoSetting(ValueError):
    """The error for a key that does not exist."""

    def __init__(self, key: str, leaf: str, siblings: Iterable[str]) -> None:
        """leaf: the key, or one below it that is set. siblings: the names that there are in its section."""
        self.key, self.leaf, self.siblings = key, leaf, siblings


class SeveralWrong(ValueError):
    """The error for a section in which several settings are wrong."""

    def __init__(self, problems: Sequence[ValueError]) -> None:
        """Keep the errors, those of sections inside the section one by one."""
        self.problems = [each for error in problems for each in problems_of(error)]


def problems_of(error: ValueError) -> list[ValueError]:
    """Return each single error that an error is made of."""
    return error.problems if isinstance(error, SeveralWrong) else [error]


def typed(value: Any, root: Any = Config) -> Any:
    """What `TextLoader` has read, as OmegaConf takes it for settings of that type.

    A single text for a list is a list of it, and one for a section that has to have a `path` is that path. Raises
    ValueError that names each wrong key, and the key that is meant.
    """
    try:
        return _typed(value, root, "")
    except ValueError as error:
        raise ValueError("; ".join(_told(each, root) for each in problems_of(error))) from None


def _told(error: ValueError, root: Any) -> str:
    if isinstance(error, NoSetting):
        return meant_by(error.key, error.leaf, error.siblings, keys_of(root))
    return str(error)


def _typed(value: Any, hint: Any, key: str) -> Any:
    words = getattr(hint, "__metadata__", ())
    hint = hint.__origin__ if get_origin(hint) is Annotated else hint
    is_union = get_origin(hint) in (Union, UnionType)
    may_be_none = is_union or hint is Any
    hint = get_args(hint)[0] if is_union else hint
    is_section = is_dataclass(hint) or get_origin(hint) is dict
    if value is NOTHING and is_section:
        return {}
    if value is NOTHING or (value is None and (may_be_none or not is_section)):
        if not may_be_none:
            raise ValueError(f"{key} has no value; {_wanted(hint)}")
        return None
    if isinstance(value, str) and PATH in words:
        value = _filled_in(value, key)
    if isinstance(value, str) and value.startswith("${"):
        return str(value)
    if is_dataclass(hint):
        return _section(value, hint, key)
    if get_origin(hint) is dict:
        return _mapping(value, get_args(hint)[1], key)
    if get_origin(hint) is list and isinstance(value, str):
        value = [value]
    if get_origin(hint) in (list, tuple):
        return _list(value, hint, key)
    return _single(value, hint, key)


def _single(value: Any, hint: Any, key: str) -> Any:
    is_choice = get_origin(hint) is Literal
    if is_choice and isinstance(value, str) and value not in get_args(hint):
        raise ValueError(f"{key}: no {str(value)!r}{did_you_mean(value, get_args(hint))}; {_wanted(hint)}")
    return str(value) if (is_choice or hint is str) and isinstance(value, Plain) else _value(value)


def _section(value: Any, cls: Any, key: str) -> dict[str, Any]:
    required = [each.name for each in fields(cls) if each.default == MISSING]
    if isinstance(value, str) and len(required) == 1:
        value = {required[0]: value}
    hints = get_type_hints(cls, include_extras=True)
    if not isinstance(value, dict):
        meant = [f"{key}.{name}={value}" for name, hint in hints.items() if value in get_args(hint)]
        says = f"did you mean {meant[0]}?" if meant else f"its settings are {', '.join(hints)}"
        raise ValueError(f"{key} is a section; {says}")
    inner = {name: f"{key}.{name}" if key else str(name) for name in value}
    return _each({name: partial(_setting, each, hints, name, inner[name]) for name, each in value.items()})


def _each(reads: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What each of them returns; one error for the mistakes of all."""
    found, problems = {}, list[ValueError]()
    for name, read in reads.items():
        try:
            found[name] = read()
        except ValueError as error:
            problems.append(error)
    if problems:
        raise problems[0] if len(problems) == 1 else SeveralWrong(problems)
    return found


def _setting(value: Any, hints: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in hints:
        raise NoSetting(key, next(_leaves(value, key), key), hints)
    return _typed(value, hints[name], key)


def _list(value: Any, hint: Any, key: str) -> list[Any]:
    entry, *others = get_args(hint)
    if not isinstance(value, list):
        example = "[{reader: auto, path: FILE}]" if is_dataclass(entry) else "[...]"
        raise ValueError(f"{key}: lists are set whole: {key}={example}")
    if others and len(value) != 1 + len(others):
        raise ValueError(f"{key} has {1 + len(others)} values, not {len(value)}")
    reads = {index: partial(_typed, each, entry, f"{key}.{index}") for index, each in enumerate(value)}
    return [*_each(reads).values()]


def _wanted(hint: Any) -> str:
    """What a setting of that type has to be."""
    if get_origin(hint) in (list, tuple):
        return "an empty list is []"
    if get_origin(hint) is Literal:
        return f"it is one of {', '.join(get_args(hint))}"
    return f"it has to be {WORDS[hint]}"


def _mapping(value: Any, hint: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is a mapping, whose entries have names: {key}={{NAME: ...}}")
    return _each({name: partial(_typed, each, hint, f"{key}.{name}") for name, each in value.items()})


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _value(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_value(each) for each in value]
    if value is NOTHING:
        return None
    if not isinstance(value, Plain):
        return value
    meant = (make for pattern, make in VALUES.items() if re.fullmatch(pattern, value))
    return next(meant, str)(value)


def _filled_in(path: str, key: str) -> str:
    """The path with the home folder for `~` and its value for each variable of the environment."""
    path = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\w+", path):
        raise ValueError(f"{key}: {unset[0]} is not set in the environment")
    return path


def _leaves(value: Any, key: str) -> Iterator[str]:
    """The dotted keys of all single values."""
    if not isinstance(value, dict):
        yield key
        return
    for name, each in value.items():
        yield from _leaves(each, f"{key}.{name}")


def keys_of(cls: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings that are no part of a list or of a mapping."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from keys_of(hint, f"{prefix}{name}.")
        else:
            yield prefix + name
