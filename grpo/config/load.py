"""From files and `key=value` overrides to one `Config`, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from grpo.config.limits import refusals
from grpo.config.rules import contradictions
from grpo.config.schema import Config
from grpo.config.texts import TextLoader, typed

T = TypeVar("T")
Rules = Callable[[T], Iterator[str]]
"""What is wrong with settings taken together."""


def load_config(argv: Sequence[str]) -> Config:
    """Layer YAML files, then key=value overrides, on the defaults; later ones win.

    An unknown key, a wrong type or an impossible combination raises ValueError here, before a model is loaded.
    """
    return load_settings(argv, Config, contradictions)


def load_settings(argv: Sequence[str], root: type[T], rules: Rules[T]) -> T:
    """The settings of a command, layered and checked as a run's are. root: their type."""
    return _to_settings(read_layers(argv, root), root, rules)


def read_config(file: Path) -> Config:
    """The config of one file, as `to_yaml` wrote it."""
    return to_config([read_file(file)])


def read_layers(argv: Sequence[str], root: Any = Config) -> list[DictConfig]:
    """The settings of each file, and behind them those of the overrides. root: the type of all settings together."""
    files = [partial(read_file, Path(arg), root) for arg in argv if not _is_override(arg)]
    overrides = partial(read_overrides, [arg for arg in argv if _is_override(arg)], root)
    try:
        layers = _all(files)
    except ValueError as error:
        try:
            overrides()
        except ValueError as other:
            # Behind a file's mistakes it would read as one more of them.
            raise ValueError(f"{error}; command line: {str(other).removeprefix('config: ')}") from None
        raise
    return [*layers, overrides()]


def read_overrides(pairs: Sequence[str], root: Any = Config, place: str = "config") -> DictConfig:
    """The settings of `key=value` pairs, of which later ones win. root: the type of all settings together."""
    with one_line_errors(place):
        layers = _all([partial(_layer, _nested(pair), root, place) for pair in pairs], place)
        return cast(DictConfig, OmegaConf.merge({}, *layers))


def _all(reads: Sequence[Callable[[], T]], place: str = "config") -> list[T]:
    """What all of them return; one ValueError for the mistakes of all, each named."""
    found, problems = list[T](), list[str]()
    for read in reads:
        try:
            found.append(read())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        first, *others = dict.fromkeys(problems)
        raise ValueError("; ".join([first, *(each.removeprefix(f"{place}: ") for each in others)]))
    return found


def to_config(layers: Sequence[DictConfig]) -> Config:
    """The defaults under these layers."""
    return _to_settings(layers, Config, contradictions)


def _to_settings(layers: Sequence[DictConfig], root: type[T], rules: Rules[T]) -> T:
    with one_line_errors():
        merged = OmegaConf.merge(OmegaConf.structured(root), *layers)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"config: {'; '.join(f'{key} is not set' for key in missing)}")
        config = cast(T, OmegaConf.to_object(merged))
    # What contradicts each other is told of settings that are each by itself right.
    if problems := [*refusals(config)] or [*rules(config)]:
        raise ValueError(f"config: {'; '.join(problems)}")
    return config


def to_layer(config: Any) -> DictConfig:
    """All settings of a config, or of another dataclass, in which what it says literally is not filled in once more."""
    return cast(DictConfig, OmegaConf.create(_escaped(asdict(config))))


def to_yaml(config: Config, argv: Sequence[str] = ()) -> str:
    """The resolved config, as a file that reads back to an equal one.

    argv: what the config was loaded from. If that reads the environment (`${oc.env:KEY}`), what it fills in stays as
    it stands there: the environment's values may be secrets.
    """
    layer = to_layer(config)
    given = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(Config), *read_layers(argv)))
    if "${oc.env:" not in str(given):
        return OmegaConf.to_yaml(layer)
    return OmegaConf.to_yaml(OmegaConf.create(_as_given(OmegaConf.to_container(layer), given)))


def read_file(file: Path, root: Any = Config, place: str = "") -> DictConfig:
    """The settings of a YAML file. root: the type of all settings together; place: what errors begin with."""
    place = place or f"config: {file}"
    if str(file).startswith("-"):
        raise ValueError(
            f"config: no option {file}: a setting is key=value (grpo/train.py --help lists them)"
        )
    if not file.is_file():
        close = get_close_matches(str(file), map(str, file.parent.glob("*.y*ml")), n=1)
        raise ValueError(f"config: no file {file}" + "".join(f"; did you mean {each}?" for each in close))
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: {error}") from error
    with one_line_errors(place):
        read = yaml.load(text, TextLoader)
        if not isinstance(read, dict | None):
            raise ValueError(f"{place} holds no settings by name")
        return _layer(read or {}, root, place)


@contextmanager
def one_line_errors(place: str = "config") -> Iterator[None]:
    """Turn the errors of OmegaConf and YAML into a ValueError of one line that names the place and the key."""
    try:
        yield
    except GrammarParseError as error:
        literally = "a ${ that is meant literally is written \\${"
        raise ValueError(f"{place}: {_one_line(error)}; {literally}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{place}: {_one_line(error)}") from error
    except TypeError as error:
        # A list met something else; OmegaConf does not say which.
        raise ValueError(f"{place}: {error}; lists are set whole") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: no YAML: {' '.join(str(error).split())}") from error


def _is_override(arg: str) -> bool:
    """Whether an argument is `key=value`, and not a file in whose path there is a `=`."""
    key, equals, _ = arg.partition("=")
    is_file = os.path.isfile(arg) or ("/" in key and arg.endswith((".yaml", ".yml")))
    return bool(equals) and not is_file


def _nested(arg: str) -> Any:
    key, _, text = arg.partition("=")
    value = yaml.load(text, TextLoader)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _layer(read: Any, root: Any, place: str) -> DictConfig:
    try:
        return OmegaConf.create(typed(read, root))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _escaped(value: Any) -> Any:
    """The value with OmegaConf's escape before each `${`, and before the backslashes in front of it."""
    if isinstance(value, dict):
        return {name: _escaped(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _as_given(value: Any, given: Any) -> Any:
    """The value with the strings that fill something in as they were given."""
    if isinstance(value, dict) and isinstance(given, dict):
        return {name: _as_given(each, given.get(name)) for name, each in value.items()}
    if isinstance(value, list) and isinstance(given, list) and len(value) == len(given):
        return [_as_given(each, one) for each, one in zip(value, given, strict=True)]
    return given if isinstance(given, str) and "${" in given else value


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
