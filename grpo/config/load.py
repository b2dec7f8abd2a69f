"""From files and `key=value` overrides to one `Config`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo.config.limits import refusals
from grpo.config.rules import contradictions
from grpo.config.schema import Config


def load_config(argv: Sequence[str]) -> Config:
    """Layer YAML files, then key=value overrides, on the defaults; later ones win.

    An unknown key, a wrong type or an impossible combination raises ValueError here, before a model is loaded.
    """
    return _load([Path(arg) for arg in argv if "=" not in arg], [arg for arg in argv if "=" in arg])


def read_config(file: Path) -> Config:
    """The config of one file, as `to_yaml` wrote it."""
    return _load([file], [])


def to_yaml(config: Config) -> str:
    """The resolved config, as a file that reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def defaults_yaml() -> str:
    """Every setting with its default; ??? where there is none."""
    return OmegaConf.to_yaml(OmegaConf.structured(Config))


def _load(files: Sequence[Path], overrides: Sequence[str]) -> Config:
    for file in files:
        if not file.is_file():
            raise ValueError(f"config: no file {file}")
    try:
        layers = [*map(OmegaConf.load, files), OmegaConf.from_dotlist(list(overrides))]
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"config: {missing[0]} is not set")
        config = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    except TypeError as error:  # a list met something else; OmegaConf does not say which
        raise ValueError(f"config: {error}; lists are set whole: data.train=[{{path: FILE}}]") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config: no YAML: {' '.join(str(error).split())}") from error
    for problem in chain(refusals(config), contradictions(config)):
        raise ValueError(f"config: {problem}")
    return config


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
