"""From files and `key=value` overrides to one `Config`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo.config.limits import refusals
from grpo.config.rules import contradictions
from grpo.config.schema import Config


def load_config(argv: Sequence[str]) -> Config:
    """Layer YAML files, then key=value overrides, on the defaults; later ones win.

    An unknown key, a wrong type or an impossible combination raises ValueError here, before a model is loaded.
    """
    return to_config(read_layers(argv))


def read_config(file: Path) -> Config:
    """The config of one file, as `to_yaml` wrote it."""
    return to_config([_read_file(file)])


def read_layers(argv: Sequence[str]) -> list[DictConfig]:
    """The settings of each file, and behind them those of the overrides."""
    files = [_read_file(Path(arg)) for arg in argv if "=" not in arg]
    with one_line_errors():
        return [*files, OmegaConf.from_dotlist([arg for arg in argv if "=" in arg])]


def to_config(layers: Sequence[DictConfig]) -> Config:
    """The defaults under these layers."""
    with one_line_errors():
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"config: {missing[0]} is not set")
        config = cast(Config, OmegaConf.to_object(merged))
    for problem in chain(refusals(config), contradictions(config)):
        raise ValueError(f"config: {problem}")
    return config


def to_yaml(config: Config) -> str:
    """The resolved config, as a file that reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def defaults_yaml() -> str:
    """Every setting with its default; ??? where there is none."""
    return OmegaConf.to_yaml(OmegaConf.structured(Config))


@contextmanager
def one_line_errors(place: str = "config") -> Iterator[None]:
    """Turn the errors of OmegaConf and YAML into a ValueError of one line that names the place and the key."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise ValueError(f"{place}: {_one_line(error)}") from error
    except TypeError as error:  # a list met something else; OmegaConf does not say which
        raise ValueError(f"{place}: {error}; lists are set whole: data.train=[{{path: FILE}}]") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: no YAML: {' '.join(str(error).split())}") from error


def _read_file(file: Path) -> DictConfig:
    if not file.is_file():
        raise ValueError(f"config: no file {file}")
    with one_line_errors():
        layer = OmegaConf.load(file)
    if not isinstance(layer, DictConfig):
        raise ValueError(f"config: {file} holds no settings by name")
    return layer


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
